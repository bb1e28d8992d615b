// Four-bit weights, as w4_weight.py packs them, in registers: what a lane of a warp gives to tensor cores.
//
// A nibble under the exponent of 2^7 (float16: 2^6) is the number OFFSET + q, without any conversion.

__device__ __forceinline__ u32 masked(u32 word) {
    u32 pair;
#if IS_HALF
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(pair) : "r"(word), "r"(0x00f000f0u), "r"(0x54005400u));
#else
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(pair) : "r"(word), "r"(0x000f000fu), "r"(0x43004300u));
#endif
    return pair;
}

// 16 x 16 values OFFSET + q, this lane's part.
__device__ __forceinline__ uint4 unpacked(u32 word) {
#if IS_HALF
    return make_uint4(masked(word << 4), masked(word), masked(word >> 4), masked(word >> 8));
#else
    return make_uint4(masked(word), masked(word >> 4), masked(word >> 8), masked(word >> 12));
#endif
}

__device__ __forceinline__ float half_to_float(u32 word) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)word));
    return value;
}

// Eight gates and eight ups, from words of both: the first or the second half of each strip's outputs.
__device__ __forceinline__ uint4 unpacked_half(u32 gates, u32 ups, int half) {
#if IS_HALF
    const int left = half ? 0 : 4;
    gates <<= left, ups <<= left;
#else
    const int right = half * 4;
    gates >>= right, ups >>= right;
#endif
    return make_uint4(masked(gates), masked(ups), masked(gates >> 8), masked(ups >> 8));
}

__device__ __forceinline__ u32 word_of(uint4 words, int i) {
    return i < 2 ? (i ? words.y : words.x) : (i == 2 ? words.z : words.w);
}

// OFFSET + zero, twice, of a word of scale and zero.
__device__ __forceinline__ u32 zero_pair(u32 scale_word) {
#if IS_HALF
    return ((scale_word >> 16 & 15) << 4 | 0x5400) * 0x10001;
#else
    return __byte_perm(scale_word, 0, 0x3232);
#endif
}

__device__ __forceinline__ u32 difference(u32 left, u32 right) {
    u32 result;
#if IS_HALF
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(left), "r"(right));
#else
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(left), "r"(right));
#endif
    return result;
}
