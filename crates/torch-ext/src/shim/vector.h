// One vector type per instruction set, with what the kernels need of it: loads and stores that convert
// from and to half precision, exp, a transpose and a small matrix product.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace te::KERNEL_ISA {

#if defined(__AVX512F__)
constexpr int VW = 16;  // floats in a vector
constexpr int NV = 4;   // vectors in a tile's row
constexpr int MR = 6;   // rows of a tile
#elif defined(__AVX2__)
constexpr int VW = 8;
constexpr int NV = 2;
constexpr int MR = 6;
#else
constexpr int VW = 4;
constexpr int NV = 2;
constexpr int MR = 4;
#endif
constexpr int PW = NV * VW;  // columns of a panel

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef uint32_t vu __attribute__((vector_size(VW * 4)));
typedef uint16_t vs __attribute__((vector_size(VW * 2)));
typedef _Float16 vh __attribute__((vector_size(VW * 2)));

#define TE_INLINE inline __attribute__((always_inline))

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

TE_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
TE_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
TE_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

TE_INLINE vf splat(float x) { return x - vf{}; }
TE_INLINE vi splat_i(int32_t x) { return x - vi{}; }
TE_INLINE vf bits_f(vi x) { return (vf)x; }
TE_INLINE vi bits_i(vf x) { return (vi)x; }

TE_INLINE vi iota() {
#if defined(__AVX512F__)
  return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
  return vi{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return vi{0, 1, 2, 3};
#endif
}

TE_INLINE vf load(const float* p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
TE_INLINE vf load(const bf16* p) {
  vs h;
  memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}
TE_INLINE vf load(const f16* p) {
  vh h;
  memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, vf);
}

TE_INLINE void store(float* p, vf x) { memcpy(p, &x, sizeof x); }
TE_INLINE void store(bf16* p, vf x) {
  // Round to nearest, ties to even; NaN stays one.
  const vu u = (vu)x;
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vu bits = x == x ? rounded : (vu)splat_i(0x7fc0);
  const vs h = __builtin_convertvector(bits, vs);
  memcpy(p, &h, sizeof h);
}
TE_INLINE void store(f16* p, vf x) {
  const vh h = __builtin_convertvector(x, vh);
  memcpy(p, &h, sizeof h);
}

// The first n (< VW) elements, zeros after them.
template <class T>
TE_INLINE vf load_some(const T* p, int64_t n) {
  T buffer[VW] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}
template <class T>
TE_INLINE void store_some(T* p, vf x, int64_t n) {
  T buffer[VW];
  store(buffer, x);
  memcpy(p, buffer, n * sizeof(T));
}

TE_INLINE float value(const float* p) { return *p; }
TE_INLINE float value(const bf16* p) {
  const uint32_t u = uint32_t(p->bits) << 16;
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}
TE_INLINE float value(const f16* p) {
  _Float16 h;
  memcpy(&h, p, sizeof h);
  return float(h);
}
template <class T>
TE_INLINE void set_value(T* p, float x) {
  store_some(p, splat(x), 1);
}

TE_INLINE vf max_v(vf a, vf b) { return a > b ? a : b; }
TE_INLINE float sum_lanes(vf x) {
  for (int step = VW / 2; step > 0; step /= 2)
    for (int i = 0; i < step; i++) x[i] += x[i + step];
  return x[0];
}
TE_INLINE float max_lanes(vf x) {
  float m = x[0];
  for (int i = 1; i < VW; i++) m = x[i] > m ? x[i] : m;
  return m;
}

// e^x to about 1 ulp (Cephes' expf); 0 below -87.3, the largest finite values above 88.3, NaN for NaN.
TE_INLINE vf exp_v(vf x) {
  const vf lo = splat(-87.33654f), hi = splat(88.37626f), magic = splat(12582912.f);
  const vi under = x < lo;
  x = x > hi ? hi : x;
  x = under ? lo : x;
  const vf t = x * 1.44269504f + magic;
  const vf n = t - magic;
  vf r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const vi exponent = (bits_i(t) - bits_i(magic) + 127) << 23;
  return under ? vf{} : p * bits_f(exponent);
}

// r[i][j] becomes r[j][i]: log2(VW) perfect shuffles of the rows.
TE_INLINE void transpose(vf r[VW]) {
#if defined(__AVX512F__)
  const vi lo = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const vi hi = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#elif defined(__AVX2__)
  const vi lo = {0, 8, 1, 9, 2, 10, 3, 11};
  const vi hi = {4, 12, 5, 13, 6, 14, 7, 15};
#else
  const vi lo = {0, 4, 1, 5};
  const vi hi = {2, 6, 3, 7};
#endif
#pragma GCC unroll 8
  for (int step = 1; step < VW; step *= 2) {
    vf s[VW];
#pragma GCC unroll 16
    for (int i = 0; i < VW / 2; i++) {
      s[2 * i] = __builtin_shuffle(r[i], r[i + VW / 2], lo);
      s[2 * i + 1] = __builtin_shuffle(r[i], r[i + VW / 2], hi);
    }
#pragma GCC unroll 16
    for (int i = 0; i < VW; i++) r[i] = s[i];
  }
}

// The part of a product that a tile of rows needs: the inner range and the columns.
struct Limits {
  int64_t k0, k1, columns;
};

// c[R, C * VW] (+)= a[R, k0..k1] * b[k0..k1, C * VW], everything fp32; a has free strides.
template <int R, int C>
__attribute__((noinline)) static void tile(const float* a, int64_t a_row, int64_t a_col,
                                           const float* b, int64_t b_row, float* c, int64_t c_row,
                                           int64_t k0, int64_t k1, bool add) {
  vf sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) sum[r][j] = add ? load(c + r * c_row + j * VW) : vf{};
  for (int64_t k = k0; k < k1; k++) {
    vf bk[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) bk[j] = load(b + k * b_row + j * VW);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const vf ar = splat(a[r * a_row + k * a_col]);
#pragma GCC unroll 8
      for (int j = 0; j < C; j++) sum[r][j] += ar * bk[j];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) store(c + r * c_row + j * VW, sum[r][j]);
}

using Tile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, int64_t,
                      int64_t, bool);

template <int R>
static Tile tile_of(int64_t vectors) {
  if constexpr (NV > 2) {
    if (vectors == 4) return tile<R, NV>;
    if (vectors == 3) return tile<R, NV - 1>;
  }
  return vectors == 2 ? tile<R, 2> : tile<R, 1>;
}

static Tile tile_for(int64_t rows, int64_t vectors) {
  switch (rows) {
    case 1: return tile_of<1>(vectors);
    case 2: return tile_of<2>(vectors);
    case 3: return tile_of<3>(vectors);
    case 4: return tile_of<4>(vectors);
    case 5: return tile_of<MR < 5 ? MR : 5>(vectors);
    default: return tile_of<MR>(vectors);
  }
}

struct Matrix {
  const float* data;
  int64_t row, col;
};

// Columns come in panels of PW: panel p starts at data + p * panel, its rows `row` apart.
struct Panels {
  const float* data;
  int64_t panel, row;
};

// c[m, n] (+)= a[m, k] * b[k, n]; limits(first row, rows) says which k and n each tile of rows needs.
template <class F>
TE_INLINE void product(int64_t m, Matrix a, Panels b, float* c, int64_t c_row, bool add, F limits) {
  for (int64_t i = 0; i < m; i += MR) {
    const int64_t rows = min64(MR, m - i);
    const Limits need = limits(i, rows);
    if (need.k1 <= need.k0 && add) continue;
    for (int64_t j = 0, p = 0; j < need.columns; j += PW, p++) {
      const int64_t vectors = min64(NV, (need.columns - j + VW - 1) / VW);
      tile_for(rows, vectors)(a.data + i * a.row, a.row, a.col, b.data + p * b.panel, b.row,
                              c + i * c_row + j, c_row, need.k0, need.k1, add);
    }
  }
}

}  // namespace te::KERNEL_ISA
