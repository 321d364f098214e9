// y = x w^T with packed weights, for few rows (bound by reading the weights) and for many (bound by
// multiply-adds).
#pragma once
#include "matmul_few.hpp"
#include "misc.hpp"

namespace gd {
namespace product {

// Words of k that a tile adds up before it writes its sums.
constexpr i64 block_k = W == 16 ? 256 : 512, longest_block = 512;
constexpr i64 block_rows = 16 * R;  // rows of x that stay in L2 with it
constexpr i64 block_columns = 128;  // columns whose sums stay in L2, and their weights for a while
constexpr i64 chunk_rows = 88 * R;  // rows for which x is copied and the weights are read once

// c[rows][stride], and the second product at c + next: hands every vector of sums to the epilogue.
template <int NW, class Epi>
GD_NOINLINE void drain(const float* c, i64 next, i64 stride, i64 row, i64 rows, i64 column,
                       i64 columns, Epi& epi) {
  for (i64 r = 0; r < rows; ++r, c += stride)
    for_lanes(columns, [&](i64 j, auto l) {
      if constexpr (NW == 1)
        epi(row + r, column + j, l, load(c + j, Full{}));
      else
        epi(row + r, column + j, l, load(c + j, Full{}), load(c + next + j, Full{}));
    });
}

// `count` f32 rows of a panel of pairs, from row `begin`.
GD_NOINLINE inline void unpack_pairs(const char* panel, i64 begin, i64 count, float* to) {
  panel += begin / 2 * NB * 4;
  for (i64 i = 0; i < count; i += 2, panel += NB * 4, to += 2 * NB)
    for (int v = 0; v < V; ++v) {
      const I word = load_raw<I>(panel + v * W * 4, Full{});
      store(to + v * W, low_half(word), Full{});
      store(to + NB + v * W, high_half(word), Full{});
    }
}

// How the weights Weight of a matmul with rows of T are read; those that are T themselves, as they
// are packed.
template <class T, class Weight> struct Reader;
template <class T> struct Reader<T, T> {
  // Points `pointers` at few rows as `panels` reads them, and returns what else it has to know.
  static i64 rows(const Team& team, const T* x, i64 stride, i64 rows, i64 k, char* scratch,
                  const char** pointers) {
    return few_pointers(team, x, stride, rows, k, scratch, pointers);
  }
  // c[rows][few_stride] = few rows times a group of panels.
  static void panels(const char* const* x, i64 step, i64 rows, const T* w, Range group, i64 k,
                     float* c) {
    few_panels(x, step, rows, w, group, k, c);
  }
  // Some words of a panel for the blocked path: where they are, or unpacked.
  static const char* block(const T* w, i64 k, i64 panel, i64 begin, i64 size, float* unpacked) {
    const char* from = reinterpret_cast<const char*>(w) + panel * words<T>(k) * NB * 4;
    if constexpr (!same<T, bf16>::value || dots<T>) return from + begin * NB * 4;
    unpack_pairs(from, begin, size, unpacked);
    return reinterpret_cast<const char*>(unpacked);
  }
};

template <int NW, class T, class Weight, class Epi>
void few(const Team& team, const T* x, i64 stride, const Weight* const (&w)[NW], i64 rows, i64 n,
         i64 k, char* scratch, Epi& epi) {
  const char* pointers[few_rows];
  const i64 step = Reader<T, Weight>::rows(team, x, stride, rows, k, scratch, pointers);
  alignas(64) float c[NW][few_rows * few_stride];
  team.divide(panels(n), side_panels, [&](Range group) {
    for (int q = 0; q < NW; ++q)
      Reader<T, Weight>::panels(pointers, step, rows, w[q], group, k, c[q]);
    const i64 column = group.begin * NB;
    drain<NW>(c[0], few_rows * few_stride, few_stride, 0, rows, column,
              least(group.end * NB, n) - column, epi);
  });
}

// How strips of R rows and groups of columns are divided among threads, so that the busiest has
// the least to do.
struct Grid {
  int down, across;
};
inline Grid choose_grid(i64 strips, i64 groups, int threads) {
  Grid best = {1, threads};
  i64 best_cost = -1;
  for (int down = 1; down <= threads; ++down) {
    if (threads % down != 0) continue;
    const int across = threads / down;
    const i64 cost = ((strips + down - 1) / down) * ((groups + across - 1) / across);
    if (best_cost >= 0 && cost >= best_cost) continue;
    best = {down, across};
    best_cost = cost;
  }
  return best;
}

// Groups of panels in the order in which threads take them: small ones at the end, so that a thread
// that was held up keeps the others waiting for little.
class Groups {
 public:
  Groups(i64 panels, i64 takers) : panels_(panels), takers_(takers) {}
  // Whether there is a group of this number, which is not below that of the call before.
  bool find(i64 number) {
    constexpr i64 largest = block_columns / NB, smallest = (largest + 1) / 2;
    for (; number_ < number; ++number_) {
      const i64 rest = panels_ - found_.end, even = rest / (2 * takers_);
      const i64 size = takers_ == 1 ? largest : most(smallest, least(largest, even));
      found_ = {found_.end, found_.end + least(size, rest)};
    }
    return found_.begin < found_.end;
  }
  Range found() const { return found_; }

 private:
  i64 panels_, takers_, number_ = -1;
  Range found_ = {0, 0};
};

// R rows, of which row(r) is where row r lies, from word `begin`, side by side: [size][R].
template <class Row>
GD_NOINLINE void copy_strip(Row row, i64 rows, i64 k, i64 begin, i64 size, int32_t* to) {
  alignas(64) int32_t words[R][block_k];
  for (i64 r = 0; r < R; ++r)
    if (r < rows)
      copy_words(row(r), k, begin, size, reinterpret_cast<char*>(words[r]));
    else
      __builtin_memset(words[r], 0, sizeof words[r]);
  for (i64 i = 0; i < size; ++i)
    for (int r = 0; r < R; ++r) *to++ = words[r][i];
}
// x[rows][k] as blocks [words / block_k][strips][words of the block][R], copied by all threads
// together.
template <class T>
GD_NOINLINE void copy_blocks(const Team& team, const T* x, i64 stride, i64 rows, i64 padded, i64 k,
                             char* to) {
  const i64 count = x_words<T>(k);
  const Range mine = team.share((rows + R - 1) / R);
  for (i64 begin = 0; begin < count; begin += block_k) {
    const i64 size = least(block_k, count - begin);
    for (i64 s = mine.begin; s < mine.end; ++s)
      copy_strip([&](i64 r) { return x + (s * R + r) * stride; }, rows - s * R, k, begin, size,
                 reinterpret_cast<int32_t*>(to) + begin * padded + s * R * size);
  }
}

// Fetches into the second cache what falls to one strip of a block of a panel, from word `begin` of
// x on.
template <class T>
GD_INLINE void fetch_part(const T* w, i64 k, i64 panel, i64 begin, i64 strip, i64 strips) {
  constexpr i64 numbers = dots<T> ? 1 : per_word<T>;  // of x for each word
  const i64 first = panel * words<T>(k) + begin / numbers;
  const i64 lines = least(block_k, x_words<T>(k) - begin) / numbers * NB / 16;
  const i64 each = (lines + strips - 1) / strips;
  const char* from = reinterpret_cast<const char*>(w) + first * NB * 4;
  for (i64 i = strip * each; i < least(lines, (strip + 1) * each); ++i)
    __builtin_prefetch(from + i * 64, 0, 2);
}

// c[rows][block_columns] = x times some panels, k block by k block; `unpacked` has room for one
// block of weights in f32.
template <class T, class Weight>
GD_NOINLINE void many_block(const char* x, i64 padded, Range rows, const Weight* w, Range group,
                            i64 k, float* unpacked, float* c) {
  // Bytes of the next panel that a strip fetches for each of its words.
  constexpr i64 ahead = least(8, NB * 4 / (block_rows / R));
  const i64 count = x_words<T>(k);
  for (i64 begin = 0; begin < count; begin += block_k) {
    const i64 size = least(block_k, count - begin);
    const char* block[block_columns / NB];
    for (i64 p = group.begin; p < group.end; ++p)
      block[p - group.begin] = Reader<T, Weight>::block(
          w, k, p, begin, size, unpacked + (p - group.begin) * block_k * NB);
    const char* xb = x + begin * padded * 4;
    const i64 count_panels = group.end - group.begin, strips = (rows.end - rows.begin + R - 1) / R;
    for (i64 r0 = rows.begin; r0 < rows.end; r0 += block_rows)
      for (i64 p = 0; p < count_panels; ++p)
        for (i64 r = r0; r < least(r0 + block_rows, rows.end); r += R) {
          if constexpr (same<T, Weight>::value)
            fetch_part(w, k, group.begin + p, begin + size, (r - rows.begin) / R, strips);
          const char* next = block[p + 1 < count_panels ? p + 1 : 0] + (r - r0) / R * size * ahead;
          strip_tile<typename Kinds<T>::many>(xb + r * size * 4, block[p], size,
                                              c + (r - rows.begin) * block_columns + p * NB,
                                              block_columns, begin > 0, next);
        }
  }
}

// The blocked path of rows of T and weights Weight: how rows are copied, and multiplied with a group
// of panels.
template <class T, class Weight> struct Blocked {
  static void copy(const Team& team, const T* x, i64 stride, i64 rows, i64 padded, i64 k,
                   char* to) {
    copy_blocks(team, x, stride, rows, padded, k, to);
  }
  static void multiply(const char* x, i64 padded, Range rows, const Weight* w, Range group, i64 k,
                       float* unpacked, float* c) {
    many_block<T>(x, padded, rows, w, group, k, unpacked, c);
  }
};

// Bytes of copied rows: words of 4 bytes, or blocks of bytes with scales, whose last is whole.
constexpr i64 least_k = 16;
GD_INLINE i64 blocked_bytes(i64 padded, i64 k) {
  return round_up(padded * round_up(most(k, least_k), 2) * 4, 64);
}

// Rows of a chunk, whole strips, such that the chunks are of one size.
GD_INLINE i64 even_chunk(i64 rows) {
  const i64 chunks = (rows + chunk_rows - 1) / chunk_rows;
  return round_up((rows + chunks - 1) / chunks, R);
}
GD_INLINE i64 block_floats(i64 padded) { return padded * block_columns; }
GD_INLINE i64 own_floats(i64 padded, int nw) {
  return longest_block * block_columns + nw * block_floats(padded);
}

template <int NW, class T, class Weight, class Epi>
void many(const Team& team, const T* x, i64 stride, const Weight* const (&w)[NW], i64 rows, i64 n,
          i64 k, char* scratch, Epi& epi) {
  const i64 most_rows = even_chunk(rows);
  float* own = reinterpret_cast<float*>(scratch + blocked_bytes(most_rows, k)) +
               team.id * own_floats(most_rows, NW);
  float* sums = own + longest_block * block_columns;
  for (i64 row = 0; row < rows; row += most_rows) {
    const i64 here = least(most_rows, rows - row), strips = (here + R - 1) / R;
    team.barrier();
    team.reset_tickets();
    Blocked<T, Weight>::copy(team, x + row * stride, stride, here, most_rows, k, scratch);
    team.barrier();
    const Grid grid = choose_grid(strips, panels(n), team.count);
    Groups groups(panels(n), grid.across);
    for (i64 task = team.next_ticket(-1); groups.find(task / grid.down);
         task = team.next_ticket(task)) {
      const Range block = groups.found();
      const Range down = Team{int(task % grid.down), grid.down, nullptr}.share(strips);
      const Range own_rows = {down.begin * R, least(down.end * R, here)};
      for (int q = 0; q < NW; ++q)
        Blocked<T, Weight>::multiply(scratch, most_rows, own_rows, w[q], block, k, own,
                                     sums + q * block_floats(most_rows));
      drain<NW>(sums, block_floats(most_rows), block_columns, row + own_rows.begin,
                own_rows.end - own_rows.begin, block.begin * NB,
                least(block.end * NB, n) - block.begin * NB, epi);
    }
  }
}

}  // namespace product

// Bytes of scratch that matmul needs for these sizes, for every element type.
inline i64 matmul_scratch(i64 rows, i64 n, i64 k, int nw, int threads) {
  (void)n;
  if (rows <= product::few_rows)
    return threads * round_up(rows * round_up(k, 2 * product::longest_few) * 4, 64);
  const i64 padded = product::even_chunk(rows);
  return product::blocked_bytes(padded, k) + threads * product::own_floats(padded, nw) * 4;
}

// For every row and vector of columns: epi(row, column, lanes, sum of x[row] * w[0][column .. ][,
// the same with w[1]]). All threads call it; it may pass barriers, and other calls may use the
// scratch only behind a barrier.
template <int NW, class T, class Epi>
void matmul(const Team& team, const T* x, i64 x_stride, const T* const (&w)[NW], i64 rows, i64 n,
            i64 k, char* scratch, Epi epi) {
  if (rows <= product::few_rows)
    product::few<NW>(team, x, x_stride, w, rows, n, k, scratch, epi);
  else
    product::many<NW>(team, x, x_stride, w, rows, n, k, scratch, epi);
}

// read(row, column, to) for the numbers of row ids[i] of a table [rows, dim] into out[i]; zeros for
// an id that is none of them.
template <class T, class Read>
GD_INLINE void embedding_rows(const Team& team, const int32_t* ids, i64 count, i64 rows, i64 dim,
                              T* out, i64 out_stride, Read read) {
  constexpr i64 piece = 64;
  const i64 pieces = (dim + piece - 1) / piece;
  const Range mine = team.share(count * pieces);
  for (i64 i = mine.begin; i < mine.end; ++i) {
    const i64 begin = i % pieces * piece, end = least(begin + piece, dim), to = i / pieces;
    const bool there = ids[to] >= 0 && ids[to] < rows;
    for (i64 d = begin; d < end; ++d) {
      T* at = out + to * out_stride + d;
      if (there)
        read(ids[to], d, at);
      else
        *at = T{};
    }
  }
}
// The same from a table that was packed as a weight.
template <class T>
GD_NOINLINE void embedding(const Team& team, const int32_t* ids, i64 count, const T* packed,
                           i64 rows, i64 dim, T* out, i64 out_stride) {
  embedding_rows(team, ids, count, rows, dim, out, out_stride,
                 [&](i64 row, i64 d, T* to) { *to = packed_at(packed, dim, row, d); });
}

// The same from a row-major table.
template <class T>
GD_NOINLINE void embedding_plain(const Team& team, const int32_t* ids, i64 count, const T* table,
                                 i64 rows, i64 dim, T* out, i64 out_stride) {
  gather_rows(team, table, dim, rows, ids, count, dim, out, out_stride);
}

}  // namespace gd
