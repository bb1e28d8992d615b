// Matrix product in CUDA C++ for a linear layer of a few tokens, with what stands beside it in a decoder layer fused in.
//
//   y = norm(x) Wᵀ + bias;   silu(y's first half) · y's second half where GATED;   added to `output` where RESIDUAL
//
// Reading the weight is all that takes time, so it goes from memory straight into the registers that the tensor cores
// read (mma.m16n8k16: 16 rows of the weight times 8 tokens), every warp's next tile under way while this one is used.
// The inputs are divided over the K_GROUPS warps of a block and the CLUSTER blocks of a thread block cluster, so that a
// block keeps its share of x in shared memory, in the order in which the tensor cores want it; the sums are put together
// through distributed shared memory, always in the same order. The order of the 32 inputs of a chunk does not matter to
// a sum, as long as weight and x agree: thread t of four takes 8t to 8t + 7, 16 bytes, for two products of 16 inputs.
//
// The first tile is loaded before the kernel that makes x has ended (programmatic dependent launch).
// Compiled by skinny_matmul.py, which defines: SIZE (inputs), CLUSTER, K_GROUPS, ROW_GROUPS (a block has their product of
// warps), CHUNKS (of 32 inputs, a warp's share), TOKEN_TILES (of 8), NORM, BIAS, RESIDUAL, GATED, FLOAT_OUTPUT (each 0
// or 1), IS_HALF (1: float16, 0: bfloat16).

typedef unsigned int u32;
typedef unsigned short u16;

constexpr int WARPS = K_GROUPS * ROW_GROUPS;
constexpr int ALL_CHUNKS = SIZE / 32;
constexpr int BLOCK_CHUNKS = (ALL_CHUNKS + CLUSTER - 1) / CLUSTER;
constexpr int X_CHUNKS = (BLOCK_CHUNKS + WARPS - 1) / WARPS;  // of each token, that a warp copies
constexpr int TILE_ROWS = 16 * ROW_GROUPS;
constexpr int PAIRS = ROW_GROUPS * TOKEN_TILES * 64;  // of sums in a tile: a thread's two rows
constexpr int SHARE = PAIRS / CLUSTER;                // of them that this block finishes
constexpr int TOKENS = 8 * TOKEN_TILES;
static_assert(SIZE % 32 == 0 && K_GROUPS * CHUNKS >= BLOCK_CHUNKS, "the warps cover the inputs");

__device__ __forceinline__ void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

__device__ __forceinline__ uint4 load_constant(const void* address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "l"(address));
    return value;
}

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

// Adds the product of 16 rows x 16 inputs of the weight and 16 inputs x 8 tokens of x.
__device__ __forceinline__ void multiply(float* sums, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if IS_HALF
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
#endif
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The product of two values of each word; adds the squares of the first to `squares`.
__device__ __forceinline__ u32 scaled(u32 values, u32 factors, float& squares) {
    const float low = to_float((u16)values), high = to_float((u16)(values >> 16));
    squares = fmaf(low, low, fmaf(high, high, squares));
    return (u32)from_float(low * to_float((u16)factors))
        | (u32)from_float(high * to_float((u16)(factors >> 16))) << 16;
}

__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ u32 in_block(const void* shared, int rank) {  // the same place in that block of the cluster
    u32 address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address) : "r"((u32)__cvta_generic_to_shared(shared)), "r"(rank));
    return address;
}

__device__ __forceinline__ float2 load_pair(u32 address) {
    float2 pair;
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
    return pair;
}

__device__ __forceinline__ float load_single(u32 address) {
    float value;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address));
    return value;
}

struct Shared {
    uint4 x[BLOCK_CHUNKS * TOKEN_TILES][32];  // what lane l of any warp hands to the tensor cores
    float2 warp_sums[K_GROUPS][PAIRS];
    float2 block_sums[2][PAIRS];  // by turns, so that one barrier a tile is enough
    float warp_squares[WARPS][TOKENS];
    float block_squares[TOKENS];
};

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(32 * WARPS, 1)
skinny_matmul(const u16* __restrict__ weight, const u16* x, const u16* __restrict__ norm_weight,
              const u16* __restrict__ bias, void* output, int num_rows, int num_tokens, float eps) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *(Shared*)memory;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int k_group = warp % K_GROUPS, row_group = warp / K_GROUPS;
    const int rank = blockIdx.x % CLUSTER, num_clusters = gridDim.x / CLUSTER;
    const int num_tiles = (num_rows + TILE_ROWS - 1) / TILE_ROWS;
    const int first_chunk = rank * BLOCK_CHUNKS;
    const int block_chunks = min(BLOCK_CHUNKS, ALL_CHUNKS - first_chunk);
    const int num_chunks = min(CHUNKS, block_chunks - k_group * CHUNKS);  // of this warp; may be none
    const int num_results = GATED ? num_rows / 2 : num_rows;

    // This thread's two rows of a tile: neighbours, or a gate and its up. Rows beyond the last one repeat it.
    auto first_row = [&](int tile) {
        const int group = tile * ROW_GROUPS + row_group;
        return GATED ? min(group * 8 + lane / 4, num_rows / 2 - 1) : min(group * 16 + lane / 4 * 2, num_rows - 2);
    };
    const u16* const columns = weight + (first_chunk + k_group * CHUNKS) * 32 + lane % 4 * 8;
    const size_t between = (size_t)(GATED ? num_rows / 2 : 1) * SIZE;
    uint4 loaded[CHUNKS][2];

    int tile = blockIdx.x / CLUSTER;
    {
        const u16* row = columns + (size_t)first_row(tile) * SIZE;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (c < num_chunks) {
                loaded[c][0] = load_constant(row + c * 32);
                loaded[c][1] = load_constant(row + between + c * 32);
            }
        }
    }
    uint4 factors[X_CHUNKS];
    if (NORM) {
#pragma unroll
        for (int i = 0; i < X_CHUNKS; i++) {
            const int chunk = i * WARPS + warp;
            if (chunk < block_chunks) factors[i] = load_constant(norm_weight + (first_chunk + chunk) * 32 + lane % 4 * 8);
        }
    }
    let_next_begin();
    wait_for_inputs();

#pragma unroll
    for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
        const int token = tokens * 8 + lane / 4;
        float squares = 0;
#pragma unroll
        for (int i = 0; i < X_CHUNKS; i++) {
            const int chunk = i * WARPS + warp;
            if (chunk >= block_chunks) break;
            uint4 values = make_uint4(0, 0, 0, 0);
            if (token < num_tokens)  // from L2: L1 may hold older lines, read for the kernel before
                values = __ldcg((const uint4*)(x + (size_t)token * SIZE + (first_chunk + chunk) * 32 + lane % 4 * 8));
            if (NORM) {
                values = make_uint4(scaled(values.x, factors[i].x, squares), scaled(values.y, factors[i].y, squares),
                                    scaled(values.z, factors[i].z, squares), scaled(values.w, factors[i].w, squares));
            }
            shared.x[chunk * TOKEN_TILES + tokens][lane] = values;
        }
        if (NORM) {
            squares += __shfl_xor_sync(0xffffffffu, squares, 1);
            squares += __shfl_xor_sync(0xffffffffu, squares, 2);
            if (lane % 4 == 0) shared.warp_squares[warp][token] = squares;
        }
    }
    __syncthreads();
    if (NORM && thread < TOKENS) {
        float squares = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) squares += shared.warp_squares[w][thread];
        shared.block_squares[thread] = squares;
    }

    for (int buffer = 0; tile < num_tiles; buffer ^= 1) {
        const int current = tile;
        tile += num_clusters;
        const bool has_next = tile < num_tiles;
        const u16* row = columns + (size_t)first_row(tile) * SIZE;
        float sums[TOKEN_TILES][4] = {};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            if (c < num_chunks) {
                const uint4 (*const values)[32] = &shared.x[(k_group * CHUNKS + c) * TOKEN_TILES];
                const uint4 a = loaded[c][0], b = loaded[c][1];
#pragma unroll
                for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
                    const uint4 v = values[tokens][lane];
                    multiply(sums[tokens], a.x, b.x, a.y, b.y, v.x, v.y);
                    multiply(sums[tokens], a.z, b.z, a.w, b.w, v.z, v.w);
                }
                if (has_next) {
                    loaded[c][0] = load_constant(row + c * 32);
                    loaded[c][1] = load_constant(row + between + c * 32);
                }
            }
        }
#pragma unroll
        for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
            float2* const pairs = &shared.warp_sums[k_group][(row_group * TOKEN_TILES + tokens) * 64 + lane];
            pairs[0] = make_float2(sums[tokens][0], sums[tokens][2]);
            pairs[32] = make_float2(sums[tokens][1], sums[tokens][3]);
        }
        __syncthreads();
        for (int pair = thread; pair < PAIRS; pair += 32 * WARPS) {
            float2 total = make_float2(0, 0);
#pragma unroll
            for (int k = 0; k < K_GROUPS; k++) {
                const float2 part = shared.warp_sums[k][pair];
                total.x += part.x;
                total.y += part.y;
            }
            shared.block_sums[buffer][pair] = total;
        }
        cluster_barrier();
        for (int pair = rank * SHARE + thread; pair < (rank + 1) * SHARE; pair += 32 * WARPS) {
            const int group = current * ROW_GROUPS + pair / (64 * TOKEN_TILES);
            const int token = pair / 64 % TOKEN_TILES * 8 + pair % 4 * 2 + pair / 32 % 2;
            const int row = pair % 32 / 4;
            float2 total = make_float2(0, 0);
            float squares = 0;
#pragma unroll
            for (int r = 0; r < CLUSTER; r++) {
                const float2 part = load_pair(in_block(&shared.block_sums[buffer][pair], r));
                total.x += part.x;
                total.y += part.y;
                if (NORM) squares += load_single(in_block(&shared.block_squares[token], r));
            }
            if (NORM) {
                const float scale = rsqrtf(squares / SIZE + eps);
                total.x *= scale;
                total.y *= scale;
            }
            const int result = GATED ? group * 8 + row : group * 16 + row * 2;
            if (token >= num_tokens || result >= num_results) continue;
            if (BIAS) {
                total.x += to_float(bias[result]);
                total.y += to_float(bias[GATED ? result + num_results : result + 1]);
            }
            const size_t place = (size_t)token * num_results + result;
            if (GATED) total.x = total.x / (1 + __expf(-total.x)) * total.y;
            if (RESIDUAL) {
                const u16* const old = (const u16*)output + place;
                total.x += to_float(__ldcg(old));
                if (!GATED) total.y += to_float(__ldcg(old + 1));
            }
            if (FLOAT_OUTPUT) {
                ((float*)output)[place] = total.x;
                if (!GATED) ((float*)output)[place + 1] = total.y;
            } else if (GATED) {
                ((u16*)output)[place] = from_float(total.x);
            } else {
                *(u32*)((u16*)output + place) = (u32)from_float(total.x) | (u32)from_float(total.y) << 16;
            }
        }
    }
    cluster_barrier();  // the others may still read this block's sums
}
