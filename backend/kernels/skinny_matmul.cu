// Matrix product in CUDA C++: a linear layer of a few tokens, with what stands beside it in a decoder layer fused in.
//
//   y = norm(x) W^T + bias;   silu(y's first half) * y's second half where GATED;   added to `output` where RESIDUAL
//
// Reading the weight is all that takes time. Every warp copies its own part of it into its own ring in shared memory,
// up to STAGES - 1 chunks ahead of the tensor cores (mma.m16n8k16: 16 tokens times 8 rows of the weight); a thread
// copies just what it will read itself, so no warp waits for another one's copies. The inputs are divided over the
// K_GROUPS warps of a block and the CLUSTER blocks of a thread block cluster, so that a block's share of x fits in
// its shared memory; the sums meet through distributed shared memory, always in the same order. The order of the 32
// inputs of a chunk does not matter to a sum, as long as weight and x agree: thread t of four takes 8t to 8t + 7,
// which are 16 bytes, for two products of 16 inputs.
//
// The ring is filled before the kernel that makes x has ended (programmatic dependent launch).
// Compiled by skinny_matmul.py, which defines: SIZE (inputs), CLUSTER, K_GROUPS, ROW_GROUPS (a block has their product
// of warps), STRIPS (of 16 rows, a warp's tile), STAGES, TOKEN_TILES (of 16), NORM, BIAS, RESIDUAL, GATED, FLOAT_OUTPUT
// (each 0 or 1), IS_HALF (1: float16, 0: bfloat16).

#include "prelude.cuh"
#include "cluster.cuh"

constexpr int WARPS = K_GROUPS * ROW_GROUPS, THREADS = 32 * WARPS;
constexpr int ALL_CHUNKS = SIZE / 32;
constexpr int BLOCK_CHUNKS = (ALL_CHUNKS + CLUSTER - 1) / CLUSTER;  // or one less
constexpr int WARP_X_CHUNKS = (BLOCK_CHUNKS + WARPS - 1) / WARPS;  // of each token, that a warp brings
constexpr int TILE_STRIPS = STRIPS * ROW_GROUPS;
constexpr int TOKENS = 16 * TOKEN_TILES;
constexpr int UNITS = TILE_STRIPS * TOKEN_TILES * 64;  // of four sums of one token in a tile: two and two rows
constexpr int SHARE = UNITS / CLUSTER;                 // of them that this block finishes
static_assert(SIZE % 32 == 0 && ALL_CHUNKS >= CLUSTER * K_GROUPS, "every warp has inputs");
static_assert(UNITS % CLUSTER == 0 && SHARE <= THREADS, "no thread finishes two units");

__device__ __forceinline__ void copy_constant(u32 shared, const void* address) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(shared), "l"(address) : "memory");
}

// The product of two values of each word; adds the squares of the first to `squares`.
__device__ __forceinline__ u32 scaled(u32 values, u32 factors, float& squares) {
    const float low = to_float((u16)values), high = to_float((u16)(values >> 16));
    squares = fmaf(low, low, fmaf(high, high, squares));
    return (u32)from_float(low * to_float((u16)factors))
        | (u32)from_float(high * to_float((u16)(factors >> 16))) << 16;
}

struct Shared {
    uint4 ring[WARPS][STAGES][STRIPS][2][32];
    uint4 x[BLOCK_CHUNKS][TOKEN_TILES][2][32];  // what lane l of any warp hands to the tensor cores
    float4 warp_sums[K_GROUPS][UNITS];
    float4 received[2][CLUSTER][SHARE];  // every block's sums of this block's share of a tile; tiles by turns
    float warp_squares[WARPS][TOKENS];
    float squares[CLUSTER][TOKENS];
    unsigned long long sums_came[2], squares_came;  // barriers
};

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
skinny_matmul(const u16* __restrict__ weight, const u16* x, const u16* __restrict__ norm_weight,
              const u16* __restrict__ bias, void* output, int num_rows, int num_tokens, float eps) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& shared = *(Shared*)memory;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int k_group = warp % K_GROUPS, row_group = warp / K_GROUPS;
    const int rank = blockIdx.x % CLUSTER, num_clusters = gridDim.x / CLUSTER;
    const int num_results = GATED ? num_rows / 2 : num_rows;
    const int num_strips = (num_rows + 15) / 16;
    const int num_tiles = (num_strips + TILE_STRIPS - 1) / TILE_STRIPS;
    const int first_chunk = rank * ALL_CHUNKS / CLUSTER;
    const int block_chunks = (rank + 1) * ALL_CHUNKS / CLUSTER - first_chunk;
    const int begin = k_group * block_chunks / K_GROUPS, end = (k_group + 1) * block_chunks / K_GROUPS;  // this warp's

    if (thread == 0) {
        make_barrier(address_of(&shared.sums_came[0]));
        make_barrier(address_of(&shared.sums_came[1]));
        make_barrier(address_of(&shared.squares_came));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_arrive();

    // A strip is 8 + 8 rows of the weight: neighbours, or gates and their ups. Rows beyond the last one repeat it.
    const u16* const column = weight + (first_chunk + begin) * 32 + lane % 4 * 8;
    auto row_start = [&](int tile, int s, int half) {
        const int strip = (tile * ROW_GROUPS + row_group) * STRIPS + s;
        const int row = (GATED ? min(strip * 8 + lane / 4, num_results - 1) + half * num_results
                               : min(strip * 16 + half * 8 + lane / 4, num_rows - 1));
        return column + (size_t)row * SIZE;
    };
    const int first_tile = blockIdx.x / CLUSTER;
    int copied_tile = first_tile, copied_chunk = 0, copied_stage = 0;
    const u16* sources[STRIPS][2];
    auto find_sources = [&]() {
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            sources[s][0] = row_start(copied_tile, s, 0);
            sources[s][1] = row_start(copied_tile, s, 1);
        }
    };
    auto copy_next_chunk = [&]() {
        if (copied_tile < num_tiles) {
            const u32 slot = address_of(&shared.ring[warp][copied_stage][0][0][lane]);
#pragma unroll
            for (int s = 0; s < STRIPS; s++) {
                copy_constant(slot + s * 1024, sources[s][0] + copied_chunk * 32);
                copy_constant(slot + s * 1024 + 512, sources[s][1] + copied_chunk * 32);
            }
            if (++copied_chunk == end - begin) {
                copied_chunk = 0;
                copied_tile += num_clusters;
                find_sources();
            }
        }
        if (++copied_stage == STAGES) copied_stage = 0;
        close_group();
    };
    find_sources();
    for (int i = 0; i < STAGES - 1; i++) copy_next_chunk();
    uint4 factors[WARP_X_CHUNKS];
    if (NORM) {
#pragma unroll
        for (int i = 0; i < WARP_X_CHUNKS; i++) {
            const int chunk = i * WARPS + warp;
            if (chunk < block_chunks)
                factors[i] = __ldg((const uint4*)(norm_weight + (first_chunk + chunk) * 32 + lane % 4 * 8));
        }
    }
    let_next_begin();
    wait_for_inputs();

    for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
        float squares[2] = {};
        uint4 values[WARP_X_CHUNKS][2];
#pragma unroll
        for (int i = 0; i < WARP_X_CHUNKS; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int chunk = i * WARPS + warp, token = tokens * 16 + half * 8 + lane / 4;
                values[i][half] = make_uint4(0, 0, 0, 0);
                if (chunk < block_chunks && token < num_tokens)  // from L2: L1 may hold lines of the kernel before
                    values[i][half] = __ldcg((const uint4*)(x + (size_t)token * SIZE + (first_chunk + chunk) * 32
                                                            + lane % 4 * 8));
            }
        }
#pragma unroll
        for (int i = 0; i < WARP_X_CHUNKS; i++) {
            const int chunk = i * WARPS + warp;
            if (chunk < block_chunks) {
                if (NORM) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        uint4& v = values[i][half];
                        v.x = scaled(v.x, factors[i].x, squares[half]);
                        v.y = scaled(v.y, factors[i].y, squares[half]);
                        v.z = scaled(v.z, factors[i].z, squares[half]);
                        v.w = scaled(v.w, factors[i].w, squares[half]);
                    }
                }
                const uint4 a = values[i][0], b = values[i][1];
                shared.x[chunk][tokens][0][lane] = make_uint4(a.x, b.x, a.y, b.y);
                shared.x[chunk][tokens][1][lane] = make_uint4(a.z, b.z, a.w, b.w);
            }
        }
        if (NORM) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                squares[half] += __shfl_xor_sync(0xffffffffu, squares[half], 1);
                squares[half] += __shfl_xor_sync(0xffffffffu, squares[half], 2);
                if (lane % 4 == 0) shared.warp_squares[warp][tokens * 16 + half * 8 + lane / 4] = squares[half];
            }
        }
    }
    cluster_wait();  // the barriers of all blocks are made
    __syncthreads();
    if (NORM && thread < TOKENS) {
        float squares = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) squares += shared.warp_squares[w][thread];
        const u32 place = address_of(&shared.squares[rank][thread]), barrier = address_of(&shared.squares_came);
        if (thread == 0) expect_bytes(barrier, CLUSTER * TOKENS * 4);
#pragma unroll
        for (int r = 0; r < CLUSTER; r++) send(in_block(place, r), squares, in_block(barrier, r));
    }

    // The four sums that this thread finishes: of which token, and in which strip of a tile and pair of its rows.
    const bool is_finisher = thread < SHARE;
    const int unit = rank * SHARE + thread;
    const int token = unit / 32 % (2 * TOKEN_TILES) * 8 + unit % 32 / 4;
    float scale = 1;

    int stage = 0, turn = 0;
    for (int tile = first_tile; tile < num_tiles; tile += num_clusters, turn++) {
        float sums[STRIPS][TOKEN_TILES][2][4] = {};
#pragma unroll 2
        for (int chunk = begin; chunk < end; chunk++) {
            wait_for_groups_but<STAGES - 2>();
            uint4 weights[STRIPS][2];
#pragma unroll
            for (int s = 0; s < STRIPS; s++) {
                weights[s][0] = shared.ring[warp][stage][s][0][lane];
                weights[s][1] = shared.ring[warp][stage][s][1][lane];
            }
            if (++stage == STAGES) stage = 0;
            copy_next_chunk();  // into the place of the chunk before this one
#pragma unroll
            for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
                const uint4 x_0 = shared.x[chunk][tokens][0][lane], x_1 = shared.x[chunk][tokens][1][lane];
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        multiply(sums[s][tokens][half], x_0, weights[s][half].x, weights[s][half].y);
                        multiply(sums[s][tokens][half], x_1, weights[s][half].z, weights[s][half].w);
                    }
                }
            }
        }
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
#pragma unroll
            for (int tokens = 0; tokens < TOKEN_TILES; tokens++) {
                const float (&sum)[2][4] = sums[s][tokens];
                float4* const units
                    = &shared.warp_sums[k_group][((row_group * STRIPS + s) * TOKEN_TILES + tokens) * 64 + lane];
                units[0] = make_float4(sum[0][0], sum[0][1], sum[1][0], sum[1][1]);
                units[32] = make_float4(sum[0][2], sum[0][3], sum[1][2], sum[1][3]);
            }
        }
        // GATED: the first pair are gates, the second their ups, and they become one pair of results.
        const int strip = tile * TILE_STRIPS + unit / (64 * TOKEN_TILES);
        const int results[2] = {strip * (GATED ? 8 : 16) + unit % 4 * 2, strip * 16 + 8 + unit % 4 * 2};
        bool is_wanted[2];
        u32 old[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            is_wanted[half] = is_finisher && token < num_tokens && results[half] < num_results && !(GATED && half);
            if (RESIDUAL && is_wanted[half])  // comes while the sums are exchanged
                old[half] = __ldcg((const u32*)((const u16*)output + (size_t)token * num_results + results[half]));
        }
        const u32 sums_came = address_of(&shared.sums_came[turn % 2]);
        if (thread == 0) expect_bytes(sums_came, UNITS * 16);
        __syncthreads();
        for (int u = thread; u < UNITS; u += THREADS) {
            float4 total = shared.warp_sums[0][u];
#pragma unroll
            for (int k = 1; k < K_GROUPS; k++) {
                const float4 part = shared.warp_sums[k][u];
                total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
            }
            const int owner = u / SHARE;
            send(in_block(address_of(&shared.received[turn % 2][rank][u % SHARE]), owner), total,
                 in_block(sums_came, owner));
        }
        __syncthreads();  // the warps may write their sums again
        wait_for_bytes(sums_came, turn / 2 % 2);
        if (NORM && turn == 0) {
            wait_for_bytes(address_of(&shared.squares_came), 0);
            float squares = 0;
#pragma unroll
            for (int r = 0; r < CLUSTER; r++) squares += shared.squares[r][token];
            scale = rsqrtf(squares / SIZE + eps);
        }
        float total[4] = {};
        if (is_finisher) {
#pragma unroll
            for (int r = 0; r < CLUSTER; r++) {
                const float4 part = shared.received[turn % 2][r][thread];
                total[0] += part.x, total[1] += part.y, total[2] += part.z, total[3] += part.w;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (!is_wanted[half]) continue;
            float pair[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                pair[j] = total[half * 2 + j] * scale;
                if (BIAS) pair[j] += to_float(bias[results[half] + j]);
                if (GATED) {
                    float up = total[2 + j] * scale;
                    if (BIAS) up += to_float(bias[num_results + results[half] + j]);
                    pair[j] = pair[j] / (1 + __expf(-pair[j])) * up;
                }
            }
            if (RESIDUAL) {
                pair[0] += to_float((u16)old[half]);
                pair[1] += to_float((u16)(old[half] >> 16));
            }
            const size_t place = (size_t)token * num_results + results[half];
            if (FLOAT_OUTPUT) *(float2*)((float*)output + place) = make_float2(pair[0], pair[1]);
            else *(u32*)((u16*)output + place) = (u32)from_float(pair[0]) | (u32)from_float(pair[1]) << 16;
        }
        // A buffer is filled again two tiles later: by then every block has read it, and has said so here.
        if (turn) cluster_wait();
        __syncwarp();
        cluster_arrive();
    }
    cluster_wait();
}
