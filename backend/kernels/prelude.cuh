// What kernels in CUDA C++ share: 16-bit values as floats, tensor cores and the matrices that they take, copies, and
// programmatic dependent launch as in pdl.py. IS_HALF is 1 for float16 and 0 for bfloat16.

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

constexpr u32 ALL = 0xffffffff;  // threads of a warp
#define INFINITE __int_as_float(0x7f800000)

__device__ __forceinline__ void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ __forceinline__ float to_float(u16 bits) {
#if IS_HALF
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return __uint_as_float((u32)bits << 16);
#endif
}

__device__ __forceinline__ u16 from_float(float value) {
    u16 bits;
#if IS_HALF
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
}

__device__ __forceinline__ u32 pair_of(float low, float high) {
    return (u32)from_float(low) | (u32)from_float(high) << 16;
}

__device__ __forceinline__ float exp2_of(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// Adds the product of 16 x 16 values of `left` and 16 x 8 of `right`, each lane's part as mma.m16n8k16 has it.
__device__ __forceinline__ void multiply(float* sums, uint4 left, u32 right_0, u32 right_1) {
#if IS_HALF
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
#endif
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(left.x), "r"(left.y), "r"(left.z), "r"(left.w), "r"(right_0), "r"(right_1));
}

// Thread 4 r + c has the elements (r, 2 c) and (r, 2 c + 1) of an 8 x 8 matrix, then (2 c, r) and (2 c + 1, r).
__device__ __forceinline__ u32 transposed(u32 pair) {
    u32 result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

// Four 8 x 8 matrices in shared memory, turned: thread 8 m + r gives the address of row r of matrix m, and has a pair of
// each as `transposed` says.
__device__ __forceinline__ void store_turned(u32 address, const u32* values) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(address), "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3]) : "memory");
}

__device__ __forceinline__ void load_turned(u32 address, u32* values) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3]) : "r"(address) : "memory");
}

// From L2: another kernel's block on this multiprocessor may have left an older line in L1.
__device__ __forceinline__ uint4 load_fresh(const void* address) {
    uint4 value;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(address));
    return value;
}

// Asynchronous copies into shared memory, by groups.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> __device__ __forceinline__ void wait_for_groups_but() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}
