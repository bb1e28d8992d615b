// Matrix product in CUDA C++ for Hopper: a linear layer of some dozens of tokens or more, with what follows it.
//
//   y = x W^T + bias;   silu(y's first half) * y's second half where GATED;   added to `output` where asked for
//
// A tile is 128 rows of the weight times TOKENS tokens. One warp copies boxes of 64 inputs of both into a ring in
// shared memory (TMA), two groups of four warps multiply 64 of the rows each (wgmma). There are rarely as many tiles
// as multiprocessors, so tiles are divided by the sum's length too, in two ways:
// * Stream-K, in stream_k_runs.cuh: sums are handed over through `workspace`.
// * PARTS > 1, where tiles are so few that a run is a half of a tile or less: its inputs are divided once more over the
//   blocks of the cluster, which send each other their sums through distributed shared memory, so that each holds some
//   of the tokens' before anything is handed over.
// Sums are always added in the same order.
//
// SHARERS == 2: blocks in pairs work on neighbouring tiles at the same pace, of the same tokens, or with SHARES_WEIGHTS
// of the same rows. Each copies half of what they share, and sends it to both.
//
// Weights are copied before the kernel that makes x has ended (programmatic dependent launch).
// Compiled by stream_k.py, which defines: TOKENS, STAGES, SHARERS (1 or 2), PARTS (1 or 2), SHARES_WEIGHTS, GATED (each
// 0 or 1), IS_HALF (1: float16, 0: bfloat16).

#include "prelude.cuh"
#include "cluster.cuh"
#include "tensor_map.cuh"
#include "wgmma.cuh"

constexpr int ROWS = 128, STEP = 64;  // of a tile; inputs in a stage
constexpr int RESULTS = GATED ? ROWS / 2 : ROWS;
constexpr int GROUPS = 2, THREADS = (GROUPS + 1) * GROUP_THREADS;
constexpr int GROUP_RESULTS = RESULTS / GROUPS;
constexpr int WEIGHT_BYTES = ROWS * STEP * 2, X_BYTES = TOKENS * STEP * 2, STAGE_BYTES = WEIGHT_BYTES + X_BYTES;
constexpr int CLUSTER = SHARERS * PARTS;
constexpr bool SHARES_X = SHARERS > 1 && !SHARES_WEIGHTS;
constexpr int SLICE = TOKENS / PARTS;  // tokens that a block finishes
constexpr int CHUNK = SLICE % 64 == 0 ? 64 : SLICE % 32 == 0 ? 32 : SLICE < 64 ? (SLICE + 15) / 16 * 16 : 16;
constexpr int CHUNKS = (SLICE + CHUNK - 1) / CHUNK;  // whose results leave a group of warps together
constexpr int TURNED_BYTES = GROUP_RESULTS * 2;  // of a token, there
static_assert(SHARERS > 1 || !SHARES_WEIGHTS, "a block alone shares nothing");
static_assert(PARTS == 1 || !GATED, "gated tiles are many");
static_assert(TOKENS % (8 * PARTS) == 0, "a block finishes whole columns of the tensor cores' results");

#include "stream_k_runs.cuh"

struct Shared {
    unsigned char ring[STAGES][STAGE_BYTES];
    unsigned char turned[GROUPS][CHUNK * TURNED_BYTES];
    u64 ready[STAGES], empty[STAGES], sums_came;  // barriers
};

// A group tells a warp of the copying ones that its sums stand in the workspace, so that only that warp has to wait
// until all the device sees them.
__device__ __forceinline__ void tell_of_sums(int group) {
    asm volatile("bar.arrive %0, %1;" :: "r"(3 + group), "n"(GROUP_THREADS + 32) : "memory");
}
__device__ __forceinline__ void wait_for_sums(int group) {
    asm volatile("bar.sync %0, %1;" :: "r"(3 + group), "n"(GROUP_THREADS + 32) : "memory");
}

// A box of the weight, as copy_x's.
template <bool TO_ALL>
__device__ __forceinline__ void copy_weight(u32 shared, const TensorMap& map, u32 barrier, int k, int row, int group,
                                            u16 sharers, u64 policy) {
    if (TO_ALL)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7, %8;"
                     :: "r"(shared), "l"(&map), "r"(k), "r"(row), "r"(0), "r"(group), "r"(barrier),
                        "h"(sharers), "l"(policy) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                     "[%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
                     :: "r"(shared), "l"(&map), "r"(k), "r"(row), "r"(0), "r"(group), "r"(barrier), "l"(policy)
                     : "memory");
}

__device__ __forceinline__ float gated(float gate, float up) {
    return __fdividef(gate, 1 + __expf(-gate)) * up;
}

// Where 8 results of a token stand among those that leave together, so that no two of 8 threads meet in a bank.
__device__ __forceinline__ u32 turned_place(int token, int eighth) {
    return token * TURNED_BYTES + ((GATED ? eighth ^ token / 2 % 4 : eighth ^ token % 8) * 16);
}

// A group's results go through shared memory, so that a token's leave in whole lines. With a residual, what they are
// added to comes the same way.
__device__ __forceinline__ void write_results(float (&sums)[SLICE / 2], u16* output, const u16* bias, bool is_added,
                                              int first_result, int first_token, int num_results, int num_tokens,
                                              unsigned char* turned, int group) {
    constexpr int EIGHTS = GROUP_RESULTS / 8, LINES = GROUP_THREADS / EIGHTS, LOADS = CHUNK / LINES;
    const int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    const int eighth = thread % EIGHTS, line = thread / EIGHTS;
    const bool is_inside = first_result + eighth * 8 < num_results;
    u16* const place = output + (size_t)first_token * num_results + first_result + eighth * 8;
    uint4 old[LOADS];
    auto is_wanted = [&](int chunk, int i) {
        const int token = chunk * CHUNK + i * LINES + line;
        return is_inside && token < SLICE && first_token + token < num_tokens;
    };
    auto place_of = [&](int chunk, int i) {
        return (uint4*)(place + (size_t)(chunk * CHUNK + i * LINES + line) * num_results);
    };
    auto fetch = [&](int chunk) {
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            old[i] = is_wanted(chunk, i) ? __ldcg(place_of(chunk, i)) : make_uint4(0, 0, 0, 0);
    };
    if (!GATED && is_added) fetch(0);
    float more[2] = {};  // of this thread's two rows: results, or one's gate and up
    if (bias) {
        const int row = first_result + (GATED ? warp * 8 : warp * 16) + lane / 4;
        const int other = GATED ? row + num_results : row + 8;
        if (row < num_results) more[0] = to_float(bias[row]);
        if (GATED ? row < num_results : other < num_results) more[1] = to_float(bias[other]);
    }
    const u32 base = address_of(turned);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        if (!GATED && is_added) {
#pragma unroll
            for (int i = 0; i < LOADS; i++)
                *(uint4*)(turned + turned_place(i * LINES + line, eighth)) = old[i];
            group_sync(group);
            if (chunk + 1 < CHUNKS) fetch(chunk + 1);
        } else if (chunk) {
            group_sync(group);  // the chunk before has left
        }
        u32 values[4];
        if (GATED) {
#pragma unroll
            for (int i = 0; i < CHUNK / 32; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float* const sum = sums + chunk * CHUNK / 2 + (i * 4 + j) * 4;
                    values[j] = pair_of(gated(sum[0] + more[0], sum[2] + more[1]),
                                        gated(sum[1] + more[0], sum[3] + more[1]));
                }
                store_turned(base + turned_place(i * 32 + lane, warp), values);
            }
        } else {
#pragma unroll
            for (int i = 0; i < CHUNK / 16; i++) {
                const u32 address = base + turned_place(i * 16 + lane / 16 * 8 + lane % 8, warp * 2 + lane / 8 % 2);
                if (is_added) load_turned(address, values);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int first = min(chunk * CHUNK / 2 + i * 8 + j * 2, SLICE / 2 - 2);  // behind: never stored
                    float low = sums[first] + more[j % 2], high = sums[first + 1] + more[j % 2];
                    if (is_added) {
                        low += to_float((u16)values[j]);
                        high += to_float((u16)(values[j] >> 16));
                    }
                    values[j] = pair_of(low, high);
                }
                store_turned(address, values);
            }
        }
        group_sync(group);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (is_wanted(chunk, i))
                *place_of(chunk, i) = *(uint4*)(turned + turned_place(i * LINES + line, eighth));
    }
    group_sync(group);
}

// `workspace`: [blocks][GROUPS][SLICE / 8][128 threads] float4, then [blocks][GROUPS] flags, which hold
// `ticket`, a number that no other launch has, while the group's sums stand there for their reader.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if SHARERS * PARTS > 1
    __cluster_dims__(SHARERS * PARTS, 1, 1)
#endif
stream_k(const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap x_map, const u16* bias,
         u16* output, float4* workspace, u64 ticket, int is_added, int num_results, int num_tokens, int num_steps,
         int num_row_tiles, int num_token_tiles, int num_waves, int group_tiles) {
    extern __shared__ unsigned char memory[];
    Shared& shared = *(Shared*)(memory + (1024 - address_of(memory) % 1024) % 1024);
    const int group = threadIdx.x / GROUP_THREADS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int sharer = blockIdx.x % SHARERS, part = blockIdx.x / SHARERS % PARTS, first_sharer = part * SHARERS;
    const int num_clusters = gridDim.x / CLUSTER;
    const int cluster = num_clusters - 1 - blockIdx.x / CLUSTER;  // the last ones' sums are handed over to earlier ones
    const Division all = {num_clusters, num_waves, num_steps, num_row_tiles, num_token_tiles, group_tiles};
    u64* const flags = (u64*)(workspace + (size_t)gridDim.x * GROUPS * (SLICE / 8) * GROUP_THREADS);

    let_next_begin();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            make_barrier(address_of(&shared.ready[stage]), 1);
            make_barrier(address_of(&shared.empty[stage]), SHARERS * GROUPS * 4);
        }
        make_barrier(address_of(&shared.sums_came), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (CLUSTER > 1) cluster_sync();
    else __syncthreads();

    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        if (PARTS > 1 && warp != GROUPS * 4) cluster_sync();
        if (warp == GROUPS * 4 && lane == 0) {
            const u64 read_once = evict_first(), read_often = evict_last();
            const u64 weight_policy = num_token_tiles == 1 ? read_once : read_often;
            const u16 sharers = ((1 << SHARERS) - 1) << first_sharer;
            int row, token;  // the first of the tile that this block copies
            auto find = [&](int tile) {
                find_tile(all, tile, sharer, row, token);
                row = row * ROWS + (SHARES_WEIGHTS ? sharer * (ROWS / SHARERS) : 0);
                token = token * TOKENS + (SHARES_X ? sharer * (TOKENS / SHARERS) : 0);
            };
            auto copy_weights = [&](int step, int stage) {
                const u32 ready = address_of(&shared.ready[stage]);
                expect_bytes(ready, STAGE_BYTES);
                copy_weight<SHARES_WEIGHTS>(
                    address_of(shared.ring[stage]) + (SHARES_WEIGHTS ? sharer * (WEIGHT_BYTES / SHARERS) : 0),
                    weight_map, ready, step * STEP, GATED ? 0 : row, GATED ? row / 16 : 0, sharers, weight_policy);
            };
            auto copy_tokens = [&](int step, int stage) {
                copy_x<SHARES_X>(
                    address_of(shared.ring[stage]) + WEIGHT_BYTES + (SHARES_X ? sharer * (X_BYTES / SHARERS) : 0),
                    x_map, address_of(&shared.ready[stage]), step * STEP, token, sharers, read_often);
            };
            int stage = 0;
            {
                Work work(all, cluster);
                while (stage < STAGES && work.next(all, cluster, part)) {
                    find(work.tile);
                    for (int step = work.first; step < work.last && stage < STAGES; step++) copy_weights(step, stage++);
                }
            }
            const int num_early = stage;
            wait_for_inputs();
            int done = 0;
            stage = 0;
            u32 parity = 1;
            Work work(all, cluster);
            while (work.next(all, cluster, part)) {
                find(work.tile);
                for (int step = work.first; step < work.last; step++) {
                    if (done >= num_early) {
                        wait_for_bytes(address_of(&shared.empty[stage]), parity);
                        copy_weights(step, stage);
                    }
                    copy_tokens(step, stage);
                    done++;
                    if (++stage == STAGES) {
                        stage = 0;
                        parity ^= 1;
                    }
                }
            }
        } else if (warp > GROUPS * 4 && warp <= GROUPS * 4 + GROUPS) {
            const int teller = warp - GROUPS * 4 - 1, begin = all.rest_begin(cluster);
            if (begin % num_steps != 0 && begin < all.rest_begin(cluster + 1)) {
                wait_for_sums(teller);
                if (lane == 0) {
                    __threadfence();
                    asm volatile("st.release.gpu.global.u64 [%0], %1;"
                                 :: "l"(flags + blockIdx.x * GROUPS + teller), "l"(ticket) : "memory");
                }
            }
        }
        __syncwarp();
        if (PARTS > 1 && warp == GROUPS * 4) cluster_sync();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        wait_for_inputs();
        const int thread = threadIdx.x % GROUP_THREADS;
        auto free_stage = [&](int stage) {
            if (lane < SHARERS) arrive(in_block(address_of(&shared.empty[stage]), first_sharer + lane));
        };
        int stage = 0;
        u32 parity = 0;
        Work work(all, cluster);
        while (work.next(all, cluster, part)) {
            float sums[TOKENS / 2];
            int last = 0;
            for (int step = work.first; step < work.last; step++) {
                wait_for_bytes(address_of(&shared.ready[stage]), parity);
                const u64 rows = wgmma_operand(address_of(shared.ring[stage]) + group * (WEIGHT_BYTES / GROUPS));
                const u64 tokens = wgmma_operand(address_of(shared.ring[stage]) + WEIGHT_BYTES);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < STEP / 16; k++)
                    wgmma(sums, rows + k * 2, tokens + k * 2, step != work.first || k != 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (step != work.first) free_stage(last);
                last = stage;
                if (++stage == STAGES) {
                    stage = 0;
                    parity ^= 1;
                }
            }
            wgmma_wait<0>();
            wgmma_finish(sums);
            free_stage(last);
            int row_tile, token_tile;
            find_tile(all, work.tile, sharer, row_tile, token_tile);
            const int first_result = row_tile * RESULTS + group * GROUP_RESULTS;
#if PARTS > 1
            constexpr int SHARE = SLICE / 8;  // of a thread's groups of four sums
            float4* const received = (float4*)shared.ring + group * SHARE * GROUP_THREADS + thread;
            auto place_of = [&](int from, int i) {
                return received + (from * GROUPS * SHARE + i) * GROUP_THREADS;
            };
            const u32 sums_came = address_of(&shared.sums_came);
            if (threadIdx.x == 0) expect_bytes(sums_came, (PARTS - 1) * SHARE * GROUPS * GROUP_THREADS * 16);
            cluster_sync();  // nobody reads its ring any more
#pragma unroll
            for (int other = 0; other < PARTS; other++) {
                if (other == part) continue;
                const int there = other * SHARERS + sharer;
#pragma unroll
                for (int i = 0; i < SHARE; i++) {
                    const float* const sum = sums + (other * SHARE + i) * 4;
                    send(in_block(address_of(place_of(part, i)), there), make_float4(sum[0], sum[1], sum[2], sum[3]),
                         in_block(sums_came, there));
                }
            }
            float slice[SLICE / 2];
#pragma unroll
            for (int other = 0; other < PARTS; other++) {
                if (other != part) continue;
#pragma unroll
                for (int i = 0; i < SLICE / 2; i++) slice[i] = sums[other * SLICE / 2 + i];
            }
            wait_for_bytes(sums_came, 0);
#pragma unroll
            for (int other = 0; other < PARTS; other++) {
                if (other == part) continue;
#pragma unroll
                for (int i = 0; i < SHARE; i++) {
                    const float4 more = *place_of(other, i);
                    slice[i * 4] += more.x, slice[i * 4 + 1] += more.y;
                    slice[i * 4 + 2] += more.z, slice[i * 4 + 3] += more.w;
                }
            }
#else
            float (&slice)[SLICE / 2] = sums;
#endif
            auto handed_over_by = [&](int block) {
                return workspace + (size_t)(block * GROUPS + group) * (SLICE / 8) * GROUP_THREADS + thread;
            };
            if (work.begin != 0) {
                float4* const place = handed_over_by(blockIdx.x);
#pragma unroll
                for (int i = 0; i < SLICE / 8; i++)
                    __stcg(place + i * GROUP_THREADS,
                           make_float4(slice[i * 4], slice[i * 4 + 1], slice[i * 4 + 2], slice[i * 4 + 3]));
                tell_of_sums(group);
                continue;
            }
            int covered = work.rest;  // where a tile ends before its last step, others have the steps from here on
            const int end = covered + num_steps - work.end;
            for (int other = cluster + 1; work.end < num_steps && covered < end; other++) {
                const int other_end = min(all.rest_begin(other + 1), end);
                if (other_end == covered) continue;
                covered = other_end;
                const int block = (num_clusters - 1 - other) * CLUSTER + blockIdx.x % CLUSTER;
                if (thread == 0) {
                    u64* const flag = flags + block * GROUPS + group;
                    u64 value;
                    do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
                    while (value != ticket);
                    *flag = 0;
                }
                group_sync(group);
                const float4* const place = handed_over_by(block);
#pragma unroll
                for (int i = 0; i < SLICE / 8; i++) {
                    const float4 more = __ldcg(place + i * GROUP_THREADS);
                    slice[i * 4] += more.x, slice[i * 4 + 1] += more.y;
                    slice[i * 4 + 2] += more.z, slice[i * 4 + 3] += more.w;
                }
            }
            write_results(slice, output, bias, is_added, first_result, token_tile * TOKENS + part * SLICE, num_results,
                          num_tokens, shared.turned[group], group);
        }
    }
    if (SHARERS > 1 && PARTS == 1) {
        __syncwarp();
        cluster_sync();  // a block whose partner may still send to it must not end
    }
}
