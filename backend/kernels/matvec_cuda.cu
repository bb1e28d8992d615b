// Matrix-vector product in CUDA C++: a linear layer of one token, with what stands beside it in a decoder layer fused in.
//
//   y = W norm(x) + bias;   silu(y's first half) * y's second half where GATED;   added to `output` where RESIDUAL
//
// A block owns ROWS outputs at a time and all its threads share their inputs, so that a row is read in one sweep of
// 16-byte loads, every one of them under way before the first is used. The first rows are loaded before the kernel that
// makes x has ended (programmatic dependent launch): weights are constants, everything else waits.
// Compiled by matvec_cuda.py, which defines: SIZE (inputs), CHUNKS (16-byte pieces of a row that a thread reads), THREADS,
// ROWS, MIN_BLOCKS (per multiprocessor), NORM, BIAS, RESIDUAL, GATED, FLOAT_OUTPUT (each 0 or 1), IS_HALF (1: float16,
// 0: bfloat16).

#include "prelude.cuh"

constexpr int ACTIVE_THREADS = (SIZE / 8 + CHUNKS - 1) / CHUNKS;
constexpr int WARPS = THREADS / 32;
constexpr int SUMS = ROWS + NORM;  // one dot product per row, and the sum of squares

__device__ __forceinline__ uint4 load_constant(const void* address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(address));
    return value;
}

__device__ __forceinline__ void unpack(uint4 packed, float* values) {
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = to_float((u16)(words[i] & 0xffff));
        values[2 * i + 1] = to_float((u16)(words[i] >> 16));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matvec(const u16* __restrict__ weight, const u16* x, const u16* __restrict__ norm_weight,
       const u16* __restrict__ bias, void* output, int num_rows, float eps) {
    __shared__ float sums[2][WARPS][SUMS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int num_groups = num_rows / ROWS;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 loaded[ROWS][CHUNKS];

    // The row of the weight that is row `r` of a group: with a gate, half of a group's rows are gates, half their ups.
    auto row_of = [&](int group, int r) {
        return GATED ? group * (ROWS / 2) + r % (ROWS / 2) + r / (ROWS / 2) * (num_rows / 2) : group * ROWS + r;
    };
    auto is_inside = [&](int c) {
        return thread < ACTIVE_THREADS
            && (CHUNKS * ACTIVE_THREADS * 8 == SIZE || (c * ACTIVE_THREADS + thread) * 8 < SIZE);
    };
    auto load_group = [&](int group) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const u16* row = weight + (size_t)row_of(group, r) * SIZE + thread * 8;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                loaded[r][c] = is_inside(c) ? load_constant(row + c * ACTIVE_THREADS * 8) : zero;
        }
    };

    int group = blockIdx.x;
    load_group(group);
    uint4 factors[CHUNKS];
    if (NORM) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            factors[c] = is_inside(c) ? load_constant(norm_weight + (c * ACTIVE_THREADS + thread) * 8) : zero;
    }
    let_next_begin();
    wait_for_inputs();

    float inputs[CHUNKS][8], squares = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        unpack(is_inside(c) ? load_fresh(x + (c * ACTIVE_THREADS + thread) * 8) : zero, inputs[c]);
        if (NORM) {
            float factor[8];
            unpack(factors[c], factor);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                squares = fmaf(inputs[c][i], inputs[c][i], squares);
                inputs[c][i] *= factor[i];
            }
        }
    }

    for (int buffer = 0; group < num_groups; buffer ^= 1) {
        float sum[SUMS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            sum[r] = 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                float values[8];
                unpack(loaded[r][c], values);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[r] = fmaf(values[i], inputs[c][i], sum[r]);
            }
        }
        if (NORM) sum[ROWS] = squares;
        const int current = group;
        group += gridDim.x;
        if (group < num_groups) load_group(group);  // under way while this group is summed up
#pragma unroll
        for (int s = 0; s < SUMS; s++)
#pragma unroll
            for (int distance = 16; distance; distance /= 2)
                sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], distance);
        if (lane == 0) {
#pragma unroll
            for (int s = 0; s < SUMS; s++) sums[buffer][warp][s] = sum[s];
        }
        __syncthreads();
        if (thread < ROWS) {
            float total = 0, all_squares = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                total += sums[buffer][w][thread];
                if (NORM) all_squares += sums[buffer][w][ROWS];
            }
            if (NORM) total *= rsqrtf(all_squares / SIZE + eps);
            if (BIAS) total += to_float(bias[row_of(current, thread)]);
            int target = current * ROWS + thread;
            if (GATED) {
                const float up = __shfl_down_sync((1u << ROWS) - 1, total, ROWS / 2);
                total = total / (1 + __expf(-total)) * up;
                target = current * (ROWS / 2) + thread;
            }
            if (!GATED || thread < ROWS / 2) {
                u16* place = (u16*)output + target;
                if (RESIDUAL) {
                    u16 bits;
                    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(bits) : "l"(place));
                    total += to_float(bits);
                }
                if (FLOAT_OUTPUT) ((float*)output)[target] = total;
                else *place = from_float(total);
            }
        }
    }
}
