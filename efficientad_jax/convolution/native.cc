// Convolutions of float32 images, and their gradients, on a CPU, by two algorithms:
//
// - Cook-Toom filtering, for a stride of 1 and kernels of 3x3 or 4x4. It computes the same as
//   cook_toom.py, in one pass over memory: a block of tiles is transformed, multiplied and
//   transformed back while it is in the cache. The matrices of the transforms are from
//   cook_toom.py: native_build.py prepends `Transform<taps>` to this text before it is compiled.
// - Products with patches, for square kernels of any size and any stride.
//
// Images are channels last. Numbers of output channels are multiples of kPanel; for filtering, so
// are those of input channels.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Index = int64_t;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;  // of a block of products: its sums take 24 of 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 12 of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif
constexpr int kColumns = 2 * kLanes;  // of a block of products
constexpr int kPanel = 32;            // channels in a block of a transformed kernel (CHANNEL_BLOCK)
constexpr int kTile = 4;              // height and width of a tile of outputs
constexpr Index kBlock = 52;          // tiles transformed at once: they fit in the L2 cache
constexpr Index kChunk = 128;         // tiles summed at once in a gradient
constexpr size_t kPage = 1 << 21;     // huge pages, in bytes: small ones cause TLB misses
constexpr Index kSkew = 16;           // padding of rows: else they share lines of the L1 cache

using Vector = float __attribute__((vector_size(kLanes * 4)));
using Loose = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Loose*>(p) = v; }

// ---- Memory and threads -------------------------------------------------------------------------

// Memory that is reused by later calls: new memory costs a page fault per 4 kB. Throws
// std::bad_alloc if there is none left, which `attempt` turns into an error of XLA.
class Scratch {
 public:
  explicit Scratch(Index floats) {
    const std::lock_guard<std::mutex> lock(mutex());
    auto& kept = free_list();
    auto it = std::find_if(kept.begin(), kept.end(),
                           [&](const Buffer& b) { return b.floats >= floats; });
    if (it == kept.end() && !kept.empty()) it = kept.end() - 1;
    if (it != kept.end()) {
      buffer_ = *it;
      kept.erase(it);
    }
    if (buffer_.floats < floats) {
      std::free(buffer_.data);
      const size_t bytes = (floats * sizeof(float) + kPage - 1) / kPage * kPage;
      buffer_ = {static_cast<float*>(std::aligned_alloc(kPage, bytes)), floats};
      if (buffer_.data == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
      madvise(buffer_.data, bytes, MADV_HUGEPAGE);
#endif
    }
  }
  ~Scratch() {
    if (buffer_.data == nullptr) return;
    const std::lock_guard<std::mutex> lock(mutex());
    auto& kept = free_list();
    kept.insert(std::upper_bound(kept.begin(), kept.end(), buffer_,
                                 [](auto& a, auto& b) { return a.floats < b.floats; }),
                buffer_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return buffer_.data; }

 private:
  struct Buffer {
    float* data = nullptr;
    Index floats = 0;
  };
  static std::vector<Buffer>& free_list() {
    static auto* kept = new std::vector<Buffer>;  // by size; not destroyed: threads may outlive it
    return *kept;
  }
  static std::mutex& mutex() {
    static auto* m = new std::mutex;
    return *m;
  }
  Buffer buffer_;
};

// Runs tasks 0 to count - 1 on XLA's threads and on this one; returns when all are done. As this
// thread works too, it finishes even if no other thread is free. A task may throw std::bad_alloc.
// On one of XLA's threads that would end the process, so it is caught there and thrown here.
void in_parallel(ffi::ThreadPool& pool, Index count, const std::function<void(Index)>& task) {
  struct Shared {
    std::atomic<Index> next{0};
    std::atomic<bool> failed{false};
    Index done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  // Claims tasks until none is left. A thread that starts late finds none and never reads `task`,
  // which no longer exists by then.
  auto work = [shared, count, &task] {
    Index claimed = 0;
    for (Index i; (i = shared->next.fetch_add(1)) < count; ++claimed) {
      try {
        task(i);
      } catch (const std::bad_alloc&) {
        shared->failed = true;
      }
    }
    if (claimed == 0) return;
    const std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += claimed;
    if (shared->done == count) shared->all_done.notify_all();
  };
  const Index others = std::min<Index>(pool.num_threads(), count) - 1;
  for (Index i = 0; i < others; ++i) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
  if (shared->failed) throw std::bad_alloc();
}

// ---- Transforms ---------------------------------------------------------------------------------

// sum + row I of the matrix M times x. Terms whose coefficient is zero are omitted.
template <class M, int I, int J = 0>
inline Vector row_times(const Vector* x, int step, Vector sum) {
  if constexpr (J == M::columns) {
    return sum;
  } else if constexpr (M::at[I][J] == 0.0f) {
    return row_times<M, I, J + 1>(x, step, sum);
  } else {
    return row_times<M, I, J + 1>(x, step, sum + M::at[I][J] * x[J * step]);
  }
}

template <class M, int I = 0>
inline void times(const Vector* x, int x_step, Vector* y, int y_step) {
  if constexpr (I < M::rows) {
    y[I * y_step] = row_times<M, I>(x, x_step, Vector{});
    times<M, I + 1>(x, x_step, y, y_step);
  }
}

// y = M x M^T.
template <class M>
inline void both_sides(const Vector* x, Vector* y) {
  Vector half[M::rows * M::columns];
  for (int j = 0; j < M::columns; ++j) times<M>(x + j, M::columns, half + j, M::columns);
  for (int i = 0; i < M::rows; ++i) times<M>(half + i * M::columns, 1, y + i * M::rows, 1);
}

struct Images {
  Index count, height, width, channels;
  explicit Images(ffi::Span<const int64_t> d) : count(d[0]), height(d[1]), width(d[2]), channels(d[3]) {}
};

// The tiles that cover all outputs, numbered consecutively over all images.
struct Tiles {
  Index rows, columns, count;
  explicit Tiles(const Images& outputs)
      : rows((outputs.height + kTile - 1) / kTile),
        columns((outputs.width + kTile - 1) / kTile),
        count(outputs.count * rows * columns) {}
};

// Loads SIDE x SIDE pixels of an image, from (top, left), `kLanes` channels of each; pixels outside
// the image are zero.
template <int SIDE>
inline void load_window(const float* image, const Images& d, Index top, Index left, Index channel,
                        Vector* window) {
  const bool inside = top >= 0 && left >= 0 && top + SIDE <= d.height && left + SIDE <= d.width;
  const float* corner = image + (top * d.width + left) * d.channels + channel;
  if (inside) {
    for (int a = 0; a < SIDE; ++a)
      for (int b = 0; b < SIDE; ++b)
        window[a * SIDE + b] = load(corner + (a * d.width + b) * d.channels);
    return;
  }
  for (int a = 0; a < SIDE; ++a)
    for (int b = 0; b < SIDE; ++b) {
      const Index y = top + a, x = left + b;
      const bool in = y >= 0 && x >= 0 && y < d.height && x < d.width;
      window[a * SIDE + b] =
          in ? load(image + (y * d.width + x) * d.channels + channel) : Vector{};
    }
}

// Transforms the windows of the tiles first to first + count - 1. Windows are kTile pixels apart;
// the first starts `pad` pixels above and left of the image. Element p of the result (of N * N) for
// tile t and channel c goes to out[p * position + t * tile + (c / kPanel) * panel + c % kPanel].
template <class M>
void transform_windows(const float* images, const Images& d, const Tiles& tiles, Index pad,
                       Index first, Index count, float* out, Index position, Index tile,
                       Index panel) {
  constexpr int SIDE = M::columns, N = M::rows;
  for (Index t = 0; t < count; ++t) {
    const Index image = (first + t) / (tiles.rows * tiles.columns);
    const Index within = (first + t) % (tiles.rows * tiles.columns);
    const Index top = within / tiles.columns * kTile - pad;
    const Index left = within % tiles.columns * kTile - pad;
    const float* source = images + image * d.height * d.width * d.channels;
    for (Index c = 0; c < d.channels; c += kLanes) {
      Vector window[SIDE * SIDE], result[N * N];
      load_window<SIDE>(source, d, top, left, c, window);
      both_sides<M>(window, result);
      float* target = out + t * tile + c / kPanel * panel + c % kPanel;
      for (int p = 0; p < N * N; ++p) store(target + p * position, result[p]);
    }
  }
}

// ---- Products -----------------------------------------------------------------------------------

// Matrices, or parts of matrices that start at `data`.
struct Left {  // any strides, of which one is 1
  const float* data;
  Index row, column;
};
struct Right {  // rows are contiguous
  const float* data;
  Index row;
};
struct Sums {
  float* data;
  Index row;
};

// sums[ROWS, kColumns] = a[ROWS, depth] b[depth, kColumns], or += if `add`.
template <int ROWS>
inline void multiply(Left a, Right b, Index depth, Sums sums, bool add) {
  Vector s[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    s[r][0] = add ? load(sums.data + r * sums.row) : Vector{};
    s[r][1] = add ? load(sums.data + r * sums.row + kLanes) : Vector{};
  }
  for (Index k = 0; k < depth; ++k) {
    const Vector b0 = load(b.data + k * b.row), b1 = load(b.data + k * b.row + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const float x = a.data[r * a.row + k * a.column];
      s[r][0] += x * b0;
      s[r][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    store(sums.data + r * sums.row, s[r][0]);
    store(sums.data + r * sums.row + kLanes, s[r][1]);
  }
}

template <int ROWS>
inline void multiply_fewer(Index rows, Left a, Right b, Index depth, Sums sums, bool add) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) return multiply<ROWS>(a, b, depth, sums, add);
    multiply_fewer<ROWS - 1>(rows, a, b, depth, sums, add);
  }
}

// The same for any part of rows, and a panel (kPanel columns).
inline void multiply_panel(Left a, Right b, Index depth, Index rows, Sums sums, bool add) {
  for (int j = 0; j < kPanel; j += kColumns) {
    const Right part{b.data + j, b.row};
    Index r = 0;
    for (; r < rows; r += kRows) {
      const Left from{a.data + r * a.row, a.row, a.column};
      const Sums to{sums.data + r * sums.row + j, sums.row};
      if (r + kRows <= rows) {
        multiply<kRows>(from, part, depth, to, add);
      } else {
        multiply_fewer<kRows - 1>(rows - r, from, part, depth, to, add);
      }
    }
  }
}

// ---- The operations -----------------------------------------------------------------------------

// Transforms a kernel [R, R, in, out] to [N * N, out / kPanel, in, kPanel].
template <int R>
void transform_kernel(ffi::ThreadPool& pool, const float* kernel, Index in, Index out,
                      float* transformed) {
  using G = typename Transform<R>::Kernel;
  constexpr int N = G::rows;
  in_parallel(pool, in, [&](Index c) {
    for (Index k = 0; k < out; k += kLanes) {
      Vector taps[R * R], result[N * N];
      for (int p = 0; p < R * R; ++p) taps[p] = load(kernel + (p * in + c) * out + k);
      both_sides<G>(taps, result);
      float* target = transformed + (k / kPanel * in + c) * kPanel + k % kPanel;
      for (int p = 0; p < N * N; ++p) store(target + p * in * out, result[p]);
    }
  });
}

// Applied to a convolution's outputs before they are written, in this order.
struct Epilogue {
  const float* bias = nullptr;  // of each channel
  bool relu = false;
  bool pool = false;  // 2x2 means of the above; a last odd row or column is dropped
};

inline Vector apply_epilogue(Vector z, Vector bias, bool relu) {
  z += bias;
  return relu ? (z < 0.0f ? Vector{} : z) : z;  // NaN stays NaN
}

// Computes out.channels output channels, from channel first_panel * kPanel of a transformed kernel
// that has `panels` panels.
template <int R>
void filter(ffi::ThreadPool& pool, const float* x, const Images& in, const float* kernel,
            Index first_panel, Index panels, float* y, const Images& out, Index pad,
            const Epilogue& epilogue) {
  using B = typename Transform<R>::Input;
  using A = typename Transform<R>::Output;
  constexpr int N = B::rows;
  const Tiles tiles(out);
  const Index threads = std::max<Index>(1, pool.num_threads());
  Index blocks = (tiles.count + kBlock - 1) / kBlock;
  blocks = std::min(tiles.count, (blocks + threads - 1) / threads * threads);
  const Index size = (tiles.count + blocks - 1) / blocks;
  blocks = (tiles.count + size - 1) / size;
  const Index row = in.channels + kSkew, position = size * row, sums = size * kPanel + kSkew;
  // Size of the result: of the outputs, or of the means of four.
  const int step = epilogue.pool ? 2 : 1;
  const Index rows = out.height / step, columns = out.width / step;

  in_parallel(pool, blocks, [&](Index block) {
    const Index first = block * size, count = std::min(size, tiles.count - first);
    const Scratch scratch(N * N * (position + sums));
    float* transformed = scratch.data();
    float* products = transformed + N * N * position;
    transform_windows<B>(x, in, tiles, pad, first, count, transformed, position, row, kPanel);
    for (Index panel = 0; panel < out.channels / kPanel; ++panel) {
      for (int p = 0; p < N * N; ++p) {
        const float* u = kernel + (p * panels + first_panel + panel) * kPanel * in.channels;
        multiply_panel({transformed + p * position, row, 1}, {u, kPanel}, in.channels, count,
                       {products + p * sums, kPanel}, false);
      }
      for (Index t = 0; t < count; ++t) {
        const Index image = (first + t) / (tiles.rows * tiles.columns);
        const Index within = (first + t) % (tiles.rows * tiles.columns);
        const Index top = within / tiles.columns * (kTile / step);
        const Index left = within % tiles.columns * (kTile / step);
        const Index height = std::min<Index>(kTile / step, rows - top);
        const Index width = std::min<Index>(kTile / step, columns - left);
        float* corner = y + ((image * rows + top) * columns + left) * out.channels;
        for (int c = 0; c < kPanel; c += kLanes) {
          const Index channel = panel * kPanel + c;
          Vector z[N * N], tile[kTile * kTile];
          for (int p = 0; p < N * N; ++p) z[p] = load(products + p * sums + t * kPanel + c);
          both_sides<A>(z, tile);
          if (epilogue.bias != nullptr) {
            const Vector bias = load(epilogue.bias + channel);
            for (Vector& v : tile) v = apply_epilogue(v, bias, epilogue.relu);
          }
          for (Index a = 0; a < height; ++a)
            for (Index b = 0; b < width; ++b) {
              const Vector* v = tile + (a * kTile + b) * step;
              store(corner + (a * columns + b) * out.channels + channel,
                    epilogue.pool ? 0.25f * (v[0] + v[1] + v[kTile] + v[kTile + 1]) : v[0]);
            }
        }
      }
    }
  });
}

template <int R>
void dense_kernel_gradient(ffi::ThreadPool& pool, const float* x, const Images& in,
                           const float* dy, const Images& out, float* d_kernel, Index pad) {
  using B = typename Transform<R>::Input;
  using A = typename Transform<R>::OutputTransposed;
  using G = typename Transform<R>::KernelTransposed;
  constexpr int N = B::rows;
  const Tiles tiles(out);
  const Index chunk = std::min(kChunk, tiles.count);
  const Index row = in.channels + kSkew, x_position = chunk * row;
  const Index y_panel = chunk * kPanel, y_position = out.channels * chunk + kSkew;
  const Index u_position = in.channels * out.channels;
  const Scratch scratch(N * N * (x_position + y_position + u_position));
  float* xs = scratch.data();
  float* ys = xs + N * N * x_position;
  float* us = ys + N * N * y_position;
  const Index panels = out.channels / kPanel;
  constexpr Index kShare = 8;  // tiles per task

  for (Index first = 0; first < tiles.count; first += chunk) {
    const Index count = std::min(chunk, tiles.count - first);
    in_parallel(pool, (count + kShare - 1) / kShare, [&](Index i) {
      const Index from = i * kShare, part = std::min(kShare, count - from);
      transform_windows<B>(x, in, tiles, pad, first + from, part, xs + from * row, x_position, row,
                           kPanel);
      transform_windows<A>(dy, out, tiles, 0, first + from, part, ys + from * kPanel, y_position,
                           kPanel, y_panel);
    });
    in_parallel(pool, N * N * panels, [&](Index i) {
      const Index p = i / panels, panel = i % panels;
      multiply_panel({xs + p * x_position, 1, row}, {ys + p * y_position + panel * y_panel, kPanel},
                     count, in.channels,
                     {us + p * u_position + panel * in.channels * kPanel, kPanel}, first > 0);
    });
  }
  in_parallel(pool, in.channels, [&](Index c) {
    for (Index k = 0; k < out.channels; k += kLanes) {
      Vector u[N * N], taps[R * R];
      const float* source = us + (k / kPanel * in.channels + c) * kPanel + k % kPanel;
      for (int p = 0; p < N * N; ++p) u[p] = load(source + p * u_position);
      both_sides<G>(u, taps);
      for (int p = 0; p < R * R; ++p)
        store(d_kernel + (p * in.channels + c) * out.channels + k, taps[p]);
    }
  });
}

// ---- Gradients that are mostly zero -------------------------------------------------------------

// The hard feature loss has a non-zero gradient for one feature in a thousand. These are propagated
// one by one.
struct Entry {
  Index image, top, left, channel;
  float value;
};

// Collects the non-zero entries of dy, ordered by channel; false if there are more than 1 in 64.
bool few_entries(const float* dy, const Images& d, std::vector<Entry>& entries) {
  const Index size = d.count * d.height * d.width * d.channels;
  std::vector<Index> indices;
  constexpr Index kRun = 64;
  for (Index from = 0; from < size; from += kRun) {  // sizes are multiples of kPanel
    const Index to = std::min(size, from + kRun);
    bool any = false;
    for (Index i = from; i < to; ++i) any |= dy[i] != 0.0f;
    if (!any) continue;
    for (Index i = from; i < to; ++i)
      if (dy[i] != 0.0f) indices.push_back(i);
    if (static_cast<Index>(indices.size()) * 64 > size) return false;
  }
  for (const Index i : indices) {
    const Index pixel = i / d.channels, row = pixel / d.width;
    entries.push_back({row / d.height, row % d.height, pixel % d.width, i % d.channels, dy[i]});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.channel < b.channel; });
  return true;
}

// dx of a convolution; `flipped` is its kernel rotated by 180 degrees: [R, R, out, in].
template <int R>
void sparse_input_gradient(ffi::ThreadPool& pool, const std::vector<Entry>& entries,
                           const float* flipped, Index out_channels, float* dx, const Images& in,
                           Index pad) {
  const Index channels = in.channels;
  in_parallel(pool, channels / kPanel, [&](Index panel) {
    const Index pixels = in.count * in.height * in.width;
    for (Index i = 0; i < pixels; ++i) std::fill_n(dx + i * channels + panel * kPanel, kPanel, 0.0f);
    for (const Entry& e : entries)
      for (int a = 0; a < R; ++a)
        for (int b = 0; b < R; ++b) {
          const Index y = e.top + a - pad, x = e.left + b - pad;
          if (y < 0 || x < 0 || y >= in.height || x >= in.width) continue;
          const Index tap = (R - 1 - a) * R + R - 1 - b;
          const float* from =
              flipped + (tap * out_channels + e.channel) * channels + panel * kPanel;
          float* to = dx + ((e.image * in.height + y) * in.width + x) * channels + panel * kPanel;
          for (int c = 0; c < kPanel; c += kLanes)
            store(to + c, load(to + c) + e.value * load(from + c));
        }
  });
}

template <int R>
void sparse_kernel_gradient(ffi::ThreadPool& pool, const float* x, const Images& in,
                            const std::vector<Entry>& entries, Index out_channels,
                            float* d_kernel, Index pad) {
  const Index rows = R * R * in.channels;
  in_parallel(pool, out_channels / kPanel, [&](Index panel) {
    const Scratch scratch(kPanel * rows);  // [kPanel, rows]: one filter after another
    std::fill_n(scratch.data(), kPanel * rows, 0.0f);
    const auto first = std::lower_bound(
        entries.begin(), entries.end(), panel * kPanel,
        [](const Entry& e, Index channel) { return e.channel < channel; });
    for (auto e = first; e != entries.end() && e->channel < (panel + 1) * kPanel; ++e)
      for (int a = 0; a < R; ++a)
        for (int b = 0; b < R; ++b) {
          const Index top = e->top + a - pad, left = e->left + b - pad;
          if (top < 0 || left < 0 || top >= in.height || left >= in.width) continue;
          const float* from = x + ((e->image * in.height + top) * in.width + left) * in.channels;
          float* to = scratch.data() + e->channel % kPanel * rows + (a * R + b) * in.channels;
          for (Index c = 0; c < in.channels; c += kLanes)
            store(to + c, load(to + c) + e->value * load(from + c));
        }
    for (Index row = 0; row < rows; ++row)
      for (Index k = 0; k < kPanel; ++k)
        d_kernel[row * out_channels + panel * kPanel + k] = scratch.data()[k * rows + row];
  });
}

template <int R>
void kernel_gradient(ffi::ThreadPool& pool, const float* x, const Images& in, const float* dy,
                     const Images& out, float* d_kernel, Index pad) {
  std::vector<Entry> entries;
  if (few_entries(dy, out, entries))
    return sparse_kernel_gradient<R>(pool, x, in, entries, out.channels, d_kernel, pad);
  dense_kernel_gradient<R>(pool, x, in, dy, out, d_kernel, pad);
}

template <int R>
void input_gradient(ffi::ThreadPool& pool, const float* dy, const Images& out,
                    const float* flipped, float* dx, const Images& in, Index pad) {
  std::vector<Entry> entries;
  if (few_entries(dy, out, entries))
    return sparse_input_gradient<R>(pool, entries, flipped, out.channels, dx, in, pad);
  constexpr int N = Transform<R>::Kernel::rows;
  const Scratch transformed(N * N * in.channels * out.channels);
  transform_kernel<R>(pool, flipped, out.channels, in.channels, transformed.data());
  filter<R>(pool, dy, out, transformed.data(), 0, in.channels / kPanel, dx, in, R - 1 - pad, {});
}

// ---- Patches ------------------------------------------------------------------------------------

// Copies the patches of a row of outputs: [out.width, side * side * channels].
void gather_patches(const float* x, const Images& in, const Images& out, Index row, Index side,
                    Index stride, float* patches) {
  const Index image = row / out.height, top = row % out.height * stride;
  const Index length = side * in.channels;  // of a row of a patch, which is contiguous in the image
  const float* corner = x + (image * in.height + top) * in.width * in.channels;
  for (Index i = 0; i < out.width; ++i)
    for (Index a = 0; a < side; ++a)
      std::copy_n(corner + (a * in.width + i * stride) * in.channels, length,
                  patches + (i * side + a) * length);
}

// The kernel is [out / kPanel, side * side * in, kPanel].
void patch_filter(ffi::ThreadPool& pool, const float* x, const Images& in, const float* kernel,
                  Index side, Index stride, float* y, const Images& out, const Epilogue& epilogue) {
  const Index depth = side * side * in.channels;
  const int step = epilogue.pool ? 2 : 1;
  const Index rows = out.height / step, columns = out.width / step, pixels = step * out.width;
  in_parallel(pool, out.count * rows, [&](Index row) {
    const Scratch scratch(pixels * (depth + kPanel));
    float* const patches = scratch.data();
    float* const products = patches + pixels * depth;
    for (int i = 0; i < step; ++i)
      gather_patches(x, in, out, row / rows * out.height + row % rows * step + i, side, stride,
                     patches + i * out.width * depth);
    for (Index panel = 0; panel < out.channels / kPanel; ++panel) {
      multiply_panel({patches, depth, 1}, {kernel + panel * depth * kPanel, kPanel}, depth, pixels,
                     {products, kPanel}, false);
      for (Index i = 0; i < columns; ++i)
        for (int c = 0; c < kPanel; c += kLanes) {
          const Index channel = panel * kPanel + c;
          const Vector bias = load(epilogue.bias + channel);
          const auto at = [&](Index pixel) {
            return apply_epilogue(load(products + pixel * kPanel + c), bias, epilogue.relu);
          };
          Vector v = at(i * step);
          if (epilogue.pool) {
            const Index below = out.width + 2 * i;
            v = 0.25f * (v + at(2 * i + 1) + at(below) + at(below + 1));
          }
          store(y + (row * columns + i) * out.channels + channel, v);
        }
    }
  });
}

void patch_kernel_gradient(ffi::ThreadPool& pool, const float* x, const Images& in,
                           const float* dy, const Images& out, Index side, Index stride,
                           float* d_kernel) {
  const Index depth = side * side * in.channels, size = depth * out.channels;
  const Index rows = out.count * out.height;
  const Index shares = std::min<Index>(rows, 8);
  const Scratch partial(shares * size);
  in_parallel(pool, shares, [&](Index share) {
    const Scratch scratch(out.width * depth);
    float* const sums = partial.data() + share * size;
    const Index first = rows * share / shares, last = rows * (share + 1) / shares;
    for (Index row = first; row < last; ++row) {
      gather_patches(x, in, out, row, side, stride, scratch.data());
      for (Index k = 0; k < out.channels; k += kPanel)
        multiply_panel({scratch.data(), 1, depth},
                       {dy + row * out.width * out.channels + k, out.channels}, out.width, depth,
                       {sums + k, out.channels}, row > first);
    }
  });
  std::copy_n(partial.data(), size, d_kernel);
  for (Index share = 1; share < shares; ++share)
    for (Index i = 0; i < size; ++i) d_kernel[i] += partial.data()[share * size + i];
}

// ---- Calls from XLA -----------------------------------------------------------------------------

using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// XLA is compiled without exceptions, so none may reach it.
template <class Work>
ffi::Error attempt(const Work& work) {
  try {
    work();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "out of memory in a convolution on the CPU; use smaller batches, or set "
                      "EFFICIENTAD_JAX_NATIVE=0 for XLA's own");
  }
  return ffi::Error::Success();
}

ffi::Error transform_kernel_call(ffi::ThreadPool pool, Array kernel, Result transformed) {
  const auto d = kernel.dimensions();
  auto* const run = d[0] == 3 ? transform_kernel<3> : transform_kernel<4>;
  return attempt([&] {
    run(pool, kernel.typed_data(), d[2], d[3], transformed->typed_data());
  });
}

ffi::Error filter_call(ffi::ThreadPool pool, Array x, Array kernel, Array bias, Result y,
                       int64_t taps, int64_t pad, int64_t first, int64_t relu, int64_t pooled) {
  auto* const run = taps == 3 ? filter<3> : filter<4>;
  const Images in(x.dimensions());
  Images out(y->dimensions());
  out.height = in.height + 2 * pad - taps + 1;
  out.width = in.width + 2 * pad - taps + 1;
  return attempt([&] {
    run(pool, x.typed_data(), in, kernel.typed_data(), first / kPanel, kernel.dimensions()[1],
        y->typed_data(), out, pad, {bias.typed_data(), relu != 0, pooled != 0});
  });
}

ffi::Error input_gradient_call(ffi::ThreadPool pool, Array dy, Array flipped, Result dx,
                               int64_t pad) {
  auto* const run = flipped.dimensions()[0] == 3 ? input_gradient<3> : input_gradient<4>;
  return attempt([&] {
    run(pool, dy.typed_data(), Images(dy.dimensions()), flipped.typed_data(), dx->typed_data(),
        Images(dx->dimensions()), pad);
  });
}

ffi::Error kernel_gradient_call(ffi::ThreadPool pool, Array x, Array dy, Result d_kernel,
                                int64_t pad) {
  auto* const run = d_kernel->dimensions()[0] == 3 ? kernel_gradient<3> : kernel_gradient<4>;
  return attempt([&] {
    run(pool, x.typed_data(), Images(x.dimensions()), dy.typed_data(), Images(dy.dimensions()),
        d_kernel->typed_data(), pad);
  });
}

ffi::Error patch_filter_call(ffi::ThreadPool pool, Array x, Array kernel, Array bias, Result y,
                             int64_t side, int64_t stride, int64_t relu, int64_t pooled) {
  const Images in(x.dimensions());
  Images out(y->dimensions());
  out.height = (in.height - side) / stride + 1;
  out.width = (in.width - side) / stride + 1;
  return attempt([&] {
    patch_filter(pool, x.typed_data(), in, kernel.typed_data(), side, stride, y->typed_data(), out,
                 {bias.typed_data(), relu != 0, pooled != 0});
  });
}

ffi::Error patch_kernel_gradient_call(ffi::ThreadPool pool, Array x, Array dy, Result d_kernel,
                                      int64_t stride) {
  return attempt([&] {
    patch_kernel_gradient(pool, x.typed_data(), Images(x.dimensions()), dy.typed_data(),
                          Images(dy.dimensions()), d_kernel->dimensions()[0], stride,
                          d_kernel->typed_data());
  });
}

}  // namespace

#define INPUTS_1 .Arg<Array>()
#define INPUTS_2 .Arg<Array>().Arg<Array>()
#define INPUTS_3 .Arg<Array>().Arg<Array>().Arg<Array>()
#define SIZE(name) .Attr<int64_t>(#name)
#define HANDLER(name, inputs, ...)                                 \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(efficientad_##name, name##_call,   \
                                xla::ffi::Ffi::Bind()              \
                                    .Ctx<xla::ffi::ThreadPool>()   \
                                    inputs.Ret<Array>() __VA_ARGS__)

HANDLER(transform_kernel, INPUTS_1, );
HANDLER(filter, INPUTS_3, SIZE(taps) SIZE(pad) SIZE(first) SIZE(relu) SIZE(pool));
HANDLER(input_gradient, INPUTS_2, SIZE(pad));
HANDLER(kernel_gradient, INPUTS_2, SIZE(pad));
HANDLER(patch_filter, INPUTS_3, SIZE(side) SIZE(stride) SIZE(relu) SIZE(pool));
HANDLER(patch_kernel_gradient, INPUTS_2, SIZE(stride));
