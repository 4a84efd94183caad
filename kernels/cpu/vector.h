#pragma once

// Vectors of LAYERWEAVE_LANES floats. Each instruction set's unit defines LAYERWEAVE_LANES and LAYERWEAVE_ISA, a namespace of
// its own, and includes all the kernels: the same source is compiled once for each. Such a unit must use nothing of the
// standard library that is inline: the linker keeps one copy of it, perhaps the one with instructions this processor lacks.

#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define LAYERWEAVE_INLINE [[gnu::always_inline]] inline

namespace layerweave::cpu::LAYERWEAVE_ISA {

inline constexpr int64_t kLanes = LAYERWEAVE_LANES;

typedef float Floats __attribute__((vector_size(4 * LAYERWEAVE_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LAYERWEAVE_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LAYERWEAVE_LANES)));
typedef uint16_t BFloats __attribute__((vector_size(2 * LAYERWEAVE_LANES)));
typedef int8_t Bytes __attribute__((vector_size(LAYERWEAVE_LANES)));
/// Two 16-bit integers in the place of each float.
typedef int16_t Shorts __attribute__((vector_size(4 * LAYERWEAVE_LANES)));
typedef int8_t ManyBytes __attribute__((vector_size(2 * LAYERWEAVE_LANES)));

LAYERWEAVE_INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
LAYERWEAVE_INLINE constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// Subtracting 0 keeps every x, -0 too, so that the compiler drops it; adding 0 would not.
LAYERWEAVE_INLINE Floats broadcast(float x) { return x - Floats{}; }

LAYERWEAVE_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

LAYERWEAVE_INLINE Floats load(const uint16_t* bfloat16) {
#if LAYERWEAVE_LANES == 16
  const Bits wide = reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bfloat16))));
#elif LAYERWEAVE_LANES == 8
  const Bits wide = reinterpret_cast<Bits>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bfloat16))));
#else
  BFloats v;
  std::memcpy(&v, bfloat16, sizeof v);
  const Bits wide = __builtin_convertvector(v, Bits);
#endif
  return reinterpret_cast<Floats>(wide << 16);
}

LAYERWEAVE_INLINE Floats load(const int8_t* p) {
  // Compilers turn the general form below into one element at a time.
#if LAYERWEAVE_LANES == 16
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif LAYERWEAVE_LANES == 8
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(__builtin_convertvector(v, Ints), Floats);
#endif
}

/// Twice as many integers as there are lanes, widened.
LAYERWEAVE_INLINE Shorts load_shorts(const int8_t* p) {
#if LAYERWEAVE_LANES == 16
  return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif LAYERWEAVE_LANES == 8
  return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  ManyBytes v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Shorts);
#endif
}

/// Two such vectors that follow each other. One access to each line of memory is faster than two.
LAYERWEAVE_INLINE void load_shorts(const int8_t* p, Shorts& first, Shorts& second) {
#if LAYERWEAVE_LANES == 16
  __m512i both = _mm512_loadu_si512(p);
  asm("" : "+v"(both));  // or the compiler would load the lower half once more
  first = reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm512_castsi512_si256(both)));
  second = reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(both, 1)));
#else
  first = load_shorts(p);
  second = load_shorts(p + 2 * kLanes);
#endif
}

LAYERWEAVE_INLINE Shorts load(const int16_t* p) {
  Shorts v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// The same two integers everywhere.
LAYERWEAVE_INLINE Shorts broadcast_pair(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return reinterpret_cast<Shorts>(pair - Ints{});
}

/// sums + the two products of each pair, in 32 bits.
LAYERWEAVE_INLINE Ints add_products(Ints sums, Shorts a, Shorts b) {
#ifdef LAYERWEAVE_VNNI
  return reinterpret_cast<Ints>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif LAYERWEAVE_LANES == 16
  return sums + reinterpret_cast<Ints>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif LAYERWEAVE_LANES == 8
  return sums + reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return sums + reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const Ints c = reinterpret_cast<Ints>(a), d = reinterpret_cast<Ints>(b);
  return sums + (c >> 16) * (d >> 16) + (c << 16 >> 16) * (d << 16 >> 16);
#endif
}

LAYERWEAVE_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

/// To the nearest integers, for |v| < 2^22.
LAYERWEAVE_INLINE Ints to_nearest(Floats v) {
  // Adding 1.5 * 2^23 leaves an integer in the low bits.
  constexpr float rounder = 0x1.8p23f;
  return reinterpret_cast<Ints>(v + rounder) - 0x4b400000;
}

/// The first `count` elements, 0 behind them.
template <class T>
LAYERWEAVE_INLINE Floats load(const T* p, int64_t count) {
  if (count == kLanes) return load(p);
  T padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = p[i];
  return load(padded);
}

/// The first `count` of the integers that load_shorts reads, 0 behind them.
LAYERWEAVE_INLINE Shorts load_shorts(const int8_t* p, int64_t count) {
  if (count == 2 * kLanes) return load_shorts(p);
#if LAYERWEAVE_LANES == 16
  return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((uint32_t{1} << count) - 1, p)));
#else
  int8_t padded[2 * kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = p[i];
  return load_shorts(padded);
#endif
}

/// Asks for the cache line of an element that is read, or overwritten, soon; the address may lie outside of everything.
template <class T>
LAYERWEAVE_INLINE void will_read(const T* base, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset) * sizeof(T)), 0, 2);
}
/// The same into the nearest cache.
template <class T>
LAYERWEAVE_INLINE void will_read_first(const T* base, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset) * sizeof(T)), 0, 3);
}
LAYERWEAVE_INLINE void will_write(const float* base, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset) * sizeof(float)), 1, 2);
}

LAYERWEAVE_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
LAYERWEAVE_INLINE void store(int16_t* p, Shorts v) { std::memcpy(p, &v, sizeof v); }

/// kLanes integers that fit 16 bits.
LAYERWEAVE_INLINE void store_shorts(int16_t* p, Ints v) {
  typedef int16_t Narrow __attribute__((vector_size(2 * LAYERWEAVE_LANES)));
  const Narrow narrow = __builtin_convertvector(v, Narrow);
  std::memcpy(p, &narrow, sizeof narrow);
}

LAYERWEAVE_INLINE void store(float* p, Floats v, int64_t count) {
  if (count == kLanes) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

/// Of two, the second where either is not a number.
LAYERWEAVE_INLINE Floats max(Floats a, Floats b) {
#if LAYERWEAVE_LANES == 16
  return _mm512_max_ps(a, b);
#elif LAYERWEAVE_LANES == 8
  return _mm256_max_ps(a, b);
#elif defined(__x86_64__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

LAYERWEAVE_INLINE Floats min(Floats a, Floats b) {
#if LAYERWEAVE_LANES == 16
  return _mm512_min_ps(a, b);
#elif LAYERWEAVE_LANES == 8
  return _mm256_min_ps(a, b);
#elif defined(__x86_64__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

LAYERWEAVE_INLINE float sum(Floats v) {
#if LAYERWEAVE_LANES == 16
  return _mm512_reduce_add_ps(v);
#else
#if LAYERWEAVE_LANES == 8
  const __m128 w = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
  const Floats w = v;
#endif
  return (w[0] + w[2]) + (w[1] + w[3]);
#endif
}

/// The sums of four vectors.
LAYERWEAVE_INLINE void store_sums(float* p, Floats a, Floats b, Floats c, Floats d) {
#if LAYERWEAVE_LANES == 16
  const Floats ab = _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee), cd = _mm512_shuffle_f32x4(c, d, 0x44) + _mm512_shuffle_f32x4(c, d, 0xee);
  Floats lanes = _mm512_shuffle_f32x4(ab, cd, 0x88) + _mm512_shuffle_f32x4(ab, cd, 0xdd);
  lanes += _mm512_shuffle_ps(lanes, lanes, 0x4e);
  lanes += _mm512_shuffle_ps(lanes, lanes, 0xb1);
  // Compressed in a register: some processors take a hundred cycles to do so in memory.
  _mm_storeu_ps(p, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, lanes)));
#elif LAYERWEAVE_LANES == 8
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
  p[0] = sum(a);
  p[1] = sum(b);
  p[2] = sum(c);
  p[3] = sum(d);
#endif
}

LAYERWEAVE_INLINE float largest(Floats v) {
  float most = v[0];
  for (int64_t i = 1; i < kLanes; ++i) most = most > v[i] ? most : v[i];
  return most;
}

/// Swaps lanes `step` apart between vectors `step` apart. Pairs of vectors are named by numbers below kLanes / 2.
template <int64_t step, int... lane>
LAYERWEAVE_INLINE void exchange(Floats* v, std::integer_sequence<int, lane...>) {
#pragma GCC unroll 8
  for (int64_t pair = 0; pair < kLanes / 2; ++pair) {
    const int64_t i = pair / step * 2 * step + pair % step;
    const Floats a = v[i], b = v[i + step];
    v[i] = __builtin_shufflevector(a, b, (lane & step ? kLanes + lane - step : lane)...);
    v[i + step] = __builtin_shufflevector(a, b, (lane & step ? kLanes + lane : lane + step)...);
  }
}

/// kLanes vectors, as rows of a matrix, become its columns.
LAYERWEAVE_INLINE void transpose(Floats* v) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  exchange<1>(v, lanes);
  exchange<2>(v, lanes);
  if constexpr (kLanes > 4) exchange<4>(v, lanes);
  if constexpr (kLanes > 8) exchange<8>(v, lanes);
}

/// An integer as a number to multiply by its power of two.
struct Exponent {
#if LAYERWEAVE_LANES == 16
  Floats whole;
  LAYERWEAVE_INLINE explicit Exponent(Floats t) : whole(_mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT)) {}
  LAYERWEAVE_INLINE Floats number() const { return whole; }
  LAYERWEAVE_INLINE Floats scale(Floats x) const { return _mm512_scalef_ps(x, whole); }
#else
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  static constexpr float kRounder = 0x1.8p23f;
  Floats rounded;
  LAYERWEAVE_INLINE explicit Exponent(Floats t) : rounded(t + kRounder) {}
  LAYERWEAVE_INLINE Floats number() const { return rounded - kRounder; }
  LAYERWEAVE_INLINE Floats scale(Floats x) const { return reinterpret_cast<Floats>(reinterpret_cast<Bits>(x) + (reinterpret_cast<Bits>(rounded) << 23)); }
#endif
};

/// 2^f for |f| <= 1/2; exactly 1 at 0.
LAYERWEAVE_INLINE Floats exp2_of_fraction(Floats f) {
  // Minimax for (2^f - 1) / f, relative error of 2^f 9e-8.
  Floats p = broadcast(0x1.5bba14p-10f);
  p = p * f + 0x1.3cea88p-7f;
  p = p * f + 0x1.c6b752p-5f;
  p = p * f + 0x1.ebf9bcp-3f;
  p = p * f + 0x1.62e42ap-1f;
  return p * f + 1.0f;
}

/// 2^t for finite t <= 126, within 3 units in the last place; exactly 1 at 0, and at most 2^-126 below -126.
LAYERWEAVE_INLINE Floats exp2_of_small(Floats t) {
#if LAYERWEAVE_LANES != 16
  t = max(broadcast(-126.0f), t);
#endif
  const Exponent n(t);
  return n.scale(exp2_of_fraction(t - n.number()));
}

inline constexpr float kLog2E = 0x1.715476p0f;

/// e^x within 4 units in the last place; 2^-126 below -87.3 and 2^126 above 87.3.
LAYERWEAVE_INLINE Floats exp(Floats x) {
  x = max(broadcast(-0x1.5d589ep6f), min(broadcast(0x1.5d589ep6f), x));
  const Exponent n(x * kLog2E);
  // ln 2 in two parts, the first short enough for n times it to be exact without a fused multiply-add.
  const Floats r = (x - n.number() * 0x1.62e4p-1f) - n.number() * 0x1.7f7d1cp-20f;
  return n.scale(exp2_of_fraction(r * kLog2E));
}

/// a / b within 2 units in the last place, for 2^-126 <= b <= 2^126.
LAYERWEAVE_INLINE Floats divide(Floats a, Floats b) {
#if LAYERWEAVE_LANES == 16
  // A division takes several times as long as this estimate to 14 bits and the Newton step that doubles them.
  const Floats estimate = _mm512_rcp14_ps(b);
  return a * (estimate * (2.0f - b * estimate));
#else
  return a / b;
#endif
}

/// log(1 + e^x) within 8 units in the last place.
LAYERWEAVE_INLINE Floats softplus(Floats x) {
  const Floats magnitude = max(x, -x);
  const Floats e = exp(-magnitude);
  // log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3: no digits are lost where e is small. Minimax in s^2, relative error 4e-9.
  const Floats s = divide(e, e + 2.0f);
  const Floats q = s * s;
  Floats p = broadcast(0x1.208cf8p-2f);
  p = p * q + 0x1.1e50ccp-2f;
  p = p * q + 0x1.99daeap-2f;
  p = p * q + 0x1.5554e0p-1f;
  p = p * q + 2.0f;
  return max(broadcast(0.0f), x) + p * s;
}

LAYERWEAVE_INLINE Floats silu(Floats x) { return divide(x, exp(-x) + 1.0f); }

}  // namespace layerweave::cpu::LAYERWEAVE_ISA
