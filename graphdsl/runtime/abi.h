/* The C functions that every generated library exports, on every backend.
 *
 * The pointer table holds inputs, state, params and results in the order of the manifest. A plan
 * binds pointers and sizes once; a step allocates nothing. Functions that return int give 0, or an
 * error code whose text gdsl_last_error returns (per thread).
 */
#pragma once
#include <stdint.h>

#define GDSL_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gdsl_plan gdsl_plan;

int gdsl_abi_version(void);
/* JSON: inputs, state, params, results, dims, hashes. */
const char* gdsl_manifest(void);
const char* gdsl_last_error(void);

/* Bytes of workspace for these sizes (plan dims in the order of the manifest), as placed, and the
 * least that any placement needs. */
int64_t gdsl_workspace_bytes(const int64_t* dims, int threads);
int64_t gdsl_workspace_lower_bound(const int64_t* dims, int threads);

int gdsl_plan_create(void* const* pointers, const int64_t* dims, int threads, void* workspace,
                     gdsl_plan** out);
int gdsl_plan_rebind(gdsl_plan* plan, int index, void* pointer);
/* On a stream of the device, which outlives the plan, a step is queued; with null it is done. */
int gdsl_step(gdsl_plan* plan, void* stream);
int gdsl_plan_destroy(gdsl_plan* plan);
/* Only in builds that measure: the number of calls, and of each in the last step its nanoseconds,
 * its turns, and the nanoseconds at the barrier before it. */
int64_t gdsl_times(gdsl_plan* plan, const int64_t** times);

/* What a rank gives to the others and gets from them: GDSL_SUM adds up `outer * inner` numbers of
 * every rank; GDSL_GATHER puts the `inner` numbers of every rank side by side in each of `outer`
 * rows. An exchanger gives 0 once the target is whole; it may be called from the thread that called
 * gdsl_step, alone. */
enum { GDSL_SUM = 0, GDSL_GATHER = 1 };
enum { GDSL_F32 = 0, GDSL_BF16 = 1, GDSL_F16 = 2 };
typedef struct gdsl_exchange {
  int kind, dtype;
  const void* source;
  void* target; /* a sum may be made in place: the source itself */
  int64_t outer, inner;
} gdsl_exchange;
typedef int (*gdsl_exchanger)(void* context, const gdsl_exchange* what);
/* Only in builds for one rank of several: what its collectives call. */
int gdsl_plan_exchanger(gdsl_plan* plan, gdsl_exchanger exchanger, void* context);

/* A quantised weight [n, k]: int8 values, and f32 scales and offsets [n, k / group] (one a row
 * where the group is 0); offsets are null in a format without. */
typedef struct gdsl_quantised {
  const int8_t* values;
  const float* scales;
  const float* offsets;
} gdsl_quantised;

/* Weights in the format that the kernels read; index counts the params of the manifest. The source
 * of a param that is quantised there is a gdsl_quantised in that format, else the tensor. */
int64_t gdsl_packed_bytes(int param);
int gdsl_pack(int param, const void* source, void* target);

#ifdef __cplusplus
}
#endif
