// A vector of at most 256 elements, with place for 64 until more is reserved.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <stdexcept>
#include <vector>

namespace atb {

constexpr size_t DEFAULT_SVECTOR_SIZE = 64;
constexpr size_t MAX_SVECTOR_SIZE = 256;

template <class T>
class SVector {
 public:
  SVector() = default;
  SVector(std::initializer_list<T> list) {
    if (list.size() > capacity_) {
      reserve(list.size());
    }
    items_ = list;
  }
  explicit SVector(size_t size, const T& value = T()) {
    if (size > capacity_) {
      reserve(size);
    }
    items_.assign(size, value);
  }

  void push_back(const T& value) {
    if (items_.size() >= capacity_) {
      throw std::out_of_range("SVector::push_back: it is full; reserve() makes more place");
    }
    items_.push_back(value);
  }
  void reserve(size_t capacity) {
    if (capacity > MAX_SVECTOR_SIZE) {
      throw std::out_of_range("SVector::reserve: more than 256 elements");
    }
    if (capacity > capacity_) {
      capacity_ = capacity;
    }
    items_.reserve(capacity_);
  }
  void resize(size_t size) {
    if (size > capacity_) {
      reserve(size);
    }
    items_.resize(size);
  }
  void clear() noexcept { items_.clear(); }
  void insert(size_t position, const T& value) {
    if (position > items_.size() || items_.size() >= capacity_) {
      throw std::out_of_range("SVector::insert: no such place");
    }
    items_.insert(items_.begin() + static_cast<std::ptrdiff_t>(position), value);
  }

  T& at(size_t index) { return items_.at(index); }
  const T& at(size_t index) const { return items_.at(index); }
  T& operator[](size_t index) { return items_.at(index); }
  const T& operator[](size_t index) const { return items_.at(index); }

  size_t size() const noexcept { return items_.size(); }
  size_t max_size() const noexcept { return MAX_SVECTOR_SIZE; }
  bool empty() const noexcept { return items_.empty(); }
  T* data() noexcept { return items_.data(); }
  const T* data() const noexcept { return items_.data(); }
  T* begin() noexcept { return items_.data(); }
  const T* begin() const noexcept { return items_.data(); }
  T* end() noexcept { return items_.data() + items_.size(); }
  const T* end() const noexcept { return items_.data() + items_.size(); }

  bool operator==(const SVector& other) const { return items_ == other.items_; }
  bool operator!=(const SVector& other) const { return items_ != other.items_; }

 private:
  std::vector<T> items_;
  size_t capacity_ = DEFAULT_SVECTOR_SIZE;
};

} // namespace atb
