// What is known of tensors that Python has given: where they lie, and whether they are still those.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace py = pybind11;

using Addresses = std::vector<std::uintptr_t>;

// Where weights lie, read from Python once for all plans.
struct Params {
  explicit Params(Addresses all) : addresses(std::move(all)) {}
  const Addresses addresses;
};

// A weak reference to an object of Python, and whether an object is still that one.
class Weak {
 public:
  explicit Weak(const py::handle& object) : ref_(object) {}
  bool is(PyObject* object) const {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* found = nullptr;
    PyWeakref_GetRef(ref_.ptr(), &found);
    Py_XDECREF(found);
    return found == object;
#else
    return PyWeakref_GetObject(ref_.ptr()) == object;
#endif
  }

 private:
  py::weakref ref_;
};

// The tensors of a call that were found to fit, by weak reference, and where they lie. What is asked
// of them again is little, for after a step they are not in the processor's caches.
class Held {
 public:
  // The tensors of a state, under their names; inputs, and results that the caller has given. The
  // addresses are those of the inputs, the state and the results. `data_ptr` tells one.
  Held(py::tuple names, const py::tuple& inputs, const py::tuple& state, const py::tuple& results,
       Addresses all, py::function data_ptr)
      : addresses(std::move(all)),
        inputs(inputs.size()),
        states(state.size()),
        names_(std::move(names)),
        data_ptr_(std::move(data_ptr)) {
    for (const auto& part : {inputs, state, results}) {
      for (const py::handle& tensor : part) tensors_.emplace_back(tensor);
    }
    if (tensors_.size() != addresses.size() || names_.size() != states) {
      throw std::invalid_argument("another number of tensors");
    }
  }

  // Whether a dict has these very tensors in this order, under the same names, at the very places.
  // Equal names that are other objects are not known again, which costs time and nothing else.
  bool same_state(const py::dict& state) const {
    if (state.size() != states) return false;
    PyObject *name = nullptr, *tensor = nullptr;
    Py_ssize_t position = 0;
    for (std::size_t i = 0; PyDict_Next(state.ptr(), &position, &name, &tensor); ++i) {
      if (name != PyTuple_GET_ITEM(names_.ptr(), static_cast<Py_ssize_t>(i))) return false;
      if (!same(inputs + i, tensor)) return false;
    }
    return true;
  }

  // The same of inputs and results, if results were given.
  bool same_rest(const py::tuple& given, const py::sequence& results) const {
    const std::size_t count = results.size();
    if (given.size() != inputs || count != addresses.size() - inputs - states) return false;
    for (std::size_t i = 0; i < inputs; ++i) {
      if (!same(i, given[i].ptr())) return false;
    }
    for (std::size_t i = 0; i < count; ++i) {
      const py::object result = results[i];
      if (!same(inputs + states + i, result.ptr())) return false;
    }
    return count > 0;
  }

  const Addresses addresses;
  const std::size_t inputs, states;

 private:
  bool same(std::size_t i, PyObject* tensor) const {
    if (!tensors_[i].is(tensor)) return false;
    auto* told = PyObject_CallOneArg(data_ptr_.ptr(), tensor);
    if (!told) throw py::error_already_set();
    return py::reinterpret_steal<py::int_>(told).cast<std::uintptr_t>() == addresses[i];
  }

  py::tuple names_;
  py::function data_ptr_;
  std::vector<Weak> tensors_;
};
