// Matrix product with four-bit weights in CUDA C++ for Hopper: a linear layer of some dozens of tokens or more.
//
//   y = x W^T + bias;   silu(y's first half) * y's second half where GATED;   added to `output` where asked for
//
// A tile is ROWS rows of the weight times TOKENS tokens. One warp copies, 128 inputs at a time, the weight's pieces
// (w4_weight.py) and two boxes of x into a ring in shared memory; each of two to four groups of four warps makes 16-bit
// weights of 64 rows in its registers, where tensor cores take them from (wgmma): of the next inputs, while those of
// the last ones are multiplied. They are the numbers that a dense matrix of that dtype has, so one set of sums does.
//
// There are rarely as many tiles as multiprocessors, so tiles are divided by the sum's length too, as in
// stream_k_runs.cuh; and where PARTS > 1, every run once more over the blocks of a cluster, which send each other their
// sums through distributed shared memory, so that each finishes some of the tokens.
//
// Where GATED, a warp's 16 rows are eight gates and their ups, so that a thread has both.
// Compiled by w4_stream_k.py, which defines: TOKENS, ROWS, RESIDENTS (blocks that share a multiprocessor), PARTS,
// STAGES, EARLY (of them, whose weights are copied before the kernel that makes x has ended), CHUNK (tokens that leave
// a group of warps together), GROUP (inputs that share a scale), GATED, IS_HALF.

#include "prelude.cuh"
#include "cluster.cuh"
#include "tensor_map.cuh"
#include "w4.cuh"
#include "wgmma.cuh"

constexpr int SHARERS = 1;
constexpr bool SHARES_WEIGHTS = false;
constexpr int STEP = 128;  // inputs in a stage
constexpr int RESULTS = GATED ? ROWS / 2 : ROWS;
constexpr int GROUPS = ROWS / 64, THREADS = (GROUPS + 1) * GROUP_THREADS;
constexpr int GROUP_RESULTS = RESULTS / GROUPS;
constexpr int STRIPS = ROWS / 16, PIECE_BYTES = 1024 + 64 * (128 / GROUP), WEIGHT_BYTES = STRIPS * PIECE_BYTES;
constexpr int BOX_BYTES = TOKENS * 128, X_BYTES = 2 * BOX_BYTES;  // a box: 64 inputs of each token
// Of a thread; together no more than all threads are started with, which is a multiple of 8 for each.
constexpr int START_REGISTERS = 65536 / (THREADS * RESIDENTS) / 8 * 8;
constexpr int COPY_REGISTERS = GROUPS == 2 && RESIDENTS == 1 ? 40 : 32;
constexpr int GROUP_REGISTERS = ((GROUPS + 1) * START_REGISTERS - COPY_REGISTERS) / GROUPS / 8 * 8;
// Products whose weights are made together: as many as there are registers for, beside the sums and all else.
constexpr int RUN = TOKENS / 2 + 77 <= GROUP_REGISTERS ? 4 : 2, RUNS = 8 / RUN;
constexpr int SLICE = TOKENS / PARTS;  // tokens that a block finishes
constexpr int TURN_BYTES = GROUP_RESULTS * 2;  // of a token, there
static_assert(PARTS == 1 || !GATED, "gated tiles are many");
static_assert(SLICE % CHUNK == 0 && (CHUNK >= 32 || !GATED), "a chunk is whole stores of all threads");
static_assert(PARTS == 1 || ROWS * TOKENS * 4 <= STAGES * X_BYTES, "sums are received where tokens were");

#include "stream_k_runs.cuh"

struct Shared {
    unsigned char x[STAGES][X_BYTES];
    unsigned char weights[STAGES][WEIGHT_BYTES];
    unsigned char turned[GROUPS][CHUNK * TURN_BYTES];
    u64 ready[STAGES], empty[STAGES], sums_came;  // barriers
};

__device__ __forceinline__ void copy_piece(u32 shared, const void* piece, u32 barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;"
                 :: "r"(shared), "l"(piece), "n"(PIECE_BYTES), "r"(barrier), "l"(policy) : "memory");
}

// Adds the product of 64 rows, in registers, and TOKENS tokens to the sums.
#define WGMMA_ROWS(N, NUMBERS, A0, A1, A2, A3, COLUMNS, ...) \
    asm volatile("{\n.reg .b64 tokens;\nmov.b64 tokens, {" COLUMNS ", 1073741888};\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16." WGMMA_TYPES " {" NUMBERS "}, " \
                 "{" A0 ", " A1 ", " A2 ", " A3 "}, tokens, 1, 1, 1, 0;\n}" \
                 : __VA_ARGS__ : "r"(rows.x), "r"(rows.y), "r"(rows.z), "r"(rows.w), "r"(tokens))

__device__ __forceinline__ void wgmma(float (&sums)[TOKENS / 2], uint4 rows, u32 tokens) {
#if TOKENS == 32
    WGMMA_ROWS(32, NUMBERS_10() ", " NUMBERS_6(1),
               "%16", "%17", "%18", "%19", "%20",
               SUMS_10(), SUMS_6(1));
#elif TOKENS == 64
    WGMMA_ROWS(64, NUMBERS_30 ", " NUMBERS_2(3),
               "%32", "%33", "%34", "%35", "%36",
               SUMS_30, SUMS_2(3));
#elif TOKENS == 96
    WGMMA_ROWS(96, NUMBERS_30 ", " NUMBERS_10(3) ", " NUMBERS_8(4),
               "%48", "%49", "%50", "%51", "%52",
               SUMS_30, SUMS_10(3), SUMS_8(4));
#elif TOKENS == 128
    WGMMA_ROWS(128, NUMBERS_60 ", " NUMBERS_4(6),
               "%64", "%65", "%66", "%67", "%68",
               SUMS_60, SUMS_4(6));
#elif TOKENS == 160
    WGMMA_ROWS(160, NUMBERS_60 ", " NUMBERS_10(6) ", " NUMBERS_10(7),
               "%80", "%81", "%82", "%83", "%84",
               SUMS_60, SUMS_10(6), SUMS_10(7));
#elif TOKENS == 192
    WGMMA_ROWS(192, NUMBERS_90 ", " NUMBERS_6(9),
               "%96", "%97", "%98", "%99", "%100",
               SUMS_90, SUMS_6(9));
#elif TOKENS == 224
    WGMMA_ROWS(224, NUMBERS_90 ", " NUMBERS_10(9) ", " NUMBERS_10(10) ", " NUMBERS_2(11),
               "%112", "%113", "%114", "%115", "%116",
               SUMS_90, SUMS_10(9), SUMS_10(10), SUMS_2(11));
#elif TOKENS == 256
    WGMMA_ROWS(256, NUMBERS_90 ", " NUMBERS_10(9) ", " NUMBERS_10(10) ", " NUMBERS_10(11) ", " NUMBERS_8(12),
               "%128", "%129", "%130", "%131", "%132",
               SUMS_90, SUMS_10(9), SUMS_10(10), SUMS_10(11), SUMS_8(12));
#endif
}

__device__ __forceinline__ float gated(float gate, float up) { return __fdividef(gate, 1 + __expf(-gate)) * up; }

// Where 8 results of a token stand among those that leave together, so that no two of 8 threads meet in a bank.
__device__ __forceinline__ u32 turned_place(int token, int part) {
    return token * TURN_BYTES + ((GATED ? part ^ token / 2 % 4 : part ^ token % 8) * 16);
}

// A group's results go through shared memory, so that a token's leave in whole lines. With a residual, what they are
// added to comes the same way.
__device__ __forceinline__ void write_results(float (&sums)[SLICE / 2], u16* output, const u16* bias, bool is_added,
                                              int first_result, int first_token, int num_results, int num_tokens,
                                              unsigned char* turned, int group) {
    constexpr int EIGHTS = GROUP_RESULTS / 8, LOADS = CHUNK * EIGHTS / GROUP_THREADS;
    const int thread = threadIdx.x % GROUP_THREADS, warp = thread / 32, lane = thread % 32;
    const int part = thread % EIGHTS, line = thread / EIGHTS;
    const bool is_inside = first_result + part * 8 < num_results;
    u16* const place = output + (size_t)first_token * num_results + first_result + part * 8;
    uint4 old[LOADS];
    auto is_wanted = [&](int chunk, int i) {
        return is_inside && first_token + chunk * CHUNK + i * (GROUP_THREADS / EIGHTS) + line < num_tokens;
    };
    auto place_of = [&](int chunk, int i) {
        return (uint4*)(place + (size_t)(chunk * CHUNK + i * (GROUP_THREADS / EIGHTS) + line) * num_results);
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
    for (int chunk = 0; chunk < SLICE / CHUNK; chunk++) {
        if (!GATED && is_added) {
#pragma unroll
            for (int i = 0; i < LOADS; i++)
                *(uint4*)(turned + turned_place(i * (GROUP_THREADS / EIGHTS) + line, part)) = old[i];
            group_sync(group);
            if (chunk + 1 < SLICE / CHUNK) fetch(chunk + 1);
        } else if (chunk) {
            group_sync(group);  // the chunk before has left
        }
        float* const own = sums + chunk * CHUNK / 2;
        u32 values[4];
        if (GATED) {
#pragma unroll
            for (int i = 0; i < CHUNK / 32; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float* sum = own + (i * 4 + j) * 4;
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
                    float low = own[i * 8 + j * 2] + more[j % 2], high = own[i * 8 + j * 2 + 1] + more[j % 2];
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
                *place_of(chunk, i) = *(uint4*)(turned + turned_place(i * (GROUP_THREADS / EIGHTS) + line, part));
    }
    group_sync(group);
}

#if PARTS > 1
// Adds up the sums of all blocks of the cluster, of which each gets a slice of the tokens, where the ring was. Once.
__device__ __forceinline__ void exchange(float (&sums)[TOKENS / 2], float (&slice)[SLICE / 2], Shared& shared, int part,
                                         int group, int thread) {
    constexpr int SHARE = SLICE / 8;  // of a thread's groups of four sums
    float4* const received = (float4*)shared.x + group * SHARE * GROUP_THREADS + thread;
    auto place_of = [&](int from, int i) { return received + (from * GROUPS * SHARE + i) * GROUP_THREADS; };
    const u32 sums_came = address_of(&shared.sums_came);
    if (threadIdx.x == 0) expect_bytes(sums_came, (PARTS - 1) * SHARE * GROUPS * GROUP_THREADS * 16);
    cluster_sync();  // nobody reads its ring any more
#pragma unroll
    for (int other = 0; other < PARTS; other++) {
        if (other == part) continue;
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const float* const sum = sums + (other * SHARE + i) * 4;
            send(in_block(address_of(place_of(part, i)), other), make_float4(sum[0], sum[1], sum[2], sum[3]),
                 in_block(sums_came, other));
        }
    }
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
}
#endif

// `workspace`: [blocks][GROUPS][SLICE / 8][128 threads] float4, then [blocks][GROUPS] flags, which hold `ticket`, a
// number that no other launch has, while the block's sums stand there for their reader.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENTS)
#if PARTS > 1
    __cluster_dims__(PARTS, 1, 1)
#endif
w4_stream_k(const unsigned char* __restrict__ weight, const __grid_constant__ TensorMap x_map, const u16* bias,
            u16* output, float4* workspace, u64 ticket, int is_added, int num_strips, int num_results, int num_tokens,
            int num_steps, int num_row_tiles, int num_token_tiles, int num_waves, int group_tiles) {
    extern __shared__ unsigned char memory[];
    Shared& shared = *(Shared*)(memory + (1024 - address_of(memory) % 1024) % 1024);
    const int group = threadIdx.x / GROUP_THREADS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int part = blockIdx.x % PARTS, num_clusters = gridDim.x / PARTS;
    const int cluster = num_clusters - 1 - blockIdx.x / PARTS;  // the last ones' sums are handed over to earlier ones
    const Division all = {num_clusters, num_waves, num_steps, num_row_tiles, num_token_tiles, group_tiles};

    let_next_begin();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            make_barrier(address_of(&shared.ready[stage]), 1);
            make_barrier(address_of(&shared.empty[stage]), GROUPS * 4);
        }
        make_barrier(address_of(&shared.sums_came), 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (PARTS > 1) cluster_sync();
    else __syncthreads();

    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COPY_REGISTERS));
        if (warp == GROUPS * 4) {
            asm volatile("prefetch.tensormap [%0];" :: "l"(&x_map) : "memory");
            const u64 read_once = evict_first(), read_often = evict_last();
            const u64 weight_policy = num_token_tiles == 1 ? read_once : read_often;
            auto piece_of = [&](int tile) {  // this lane's first one
                int row_tile, token_tile;
                find_tile(all, tile, 0, row_tile, token_tile);
                const int strip = GATED ? row_tile * (STRIPS / 2) + lane % (STRIPS / 2) : row_tile * STRIPS + lane;
                const int end = GATED ? num_strips / 2 : num_strips;  // what lies beyond is not written
                const int wanted = min(strip, end - 1) + (GATED ? lane / (STRIPS / 2) * end : 0);
                return weight + (size_t)wanted * num_steps * PIECE_BYTES;
            };
            auto token_of = [&](int tile) {
                int row_tile, token_tile;
                find_tile(all, tile, 0, row_tile, token_tile);
                return token_tile * TOKENS;
            };
            auto copy_weights = [&](const unsigned char* piece, int step, int stage) {  // a strip a lane
                const u32 ready = address_of(&shared.ready[stage]);
                if (lane == 0) expect_bytes(ready, X_BYTES + WEIGHT_BYTES);
                __syncwarp();
                if (lane < STRIPS)
                    copy_piece(address_of(shared.weights[stage]) + lane * PIECE_BYTES,
                               piece + (size_t)step * PIECE_BYTES, ready, weight_policy);
            };
            auto copy_tokens = [&](int token, int step, int stage) {  // a box a lane
                if (lane < 2)
                    copy_x<false>(address_of(shared.x[stage]) + lane * BOX_BYTES, x_map,
                                  address_of(&shared.ready[stage]), step * STEP + lane * 64, token, 0, read_often);
            };
            int stage = 0;
            {
                Work work(all, cluster);
                while (stage < EARLY && work.next(all, cluster, part)) {
                    const unsigned char* const piece = piece_of(work.tile);
#pragma unroll 1
                    for (int step = work.first; step < work.last && stage < EARLY; step++)
                        copy_weights(piece, step, stage++);
                }
            }
            const int num_early = stage;
            wait_for_inputs();
            int done = 0;
            stage = 0;
            u32 parity = 1;
            Work work(all, cluster);
            while (work.next(all, cluster, part)) {
                const unsigned char* const piece = piece_of(work.tile);
                const int token = token_of(work.tile);
#pragma unroll 1
                for (int step = work.first; step < work.last; step++) {
                    if (done >= num_early) {
                        wait_for_bytes(address_of(&shared.empty[stage]), parity);
                        copy_weights(piece, step, stage);
                    }
                    copy_tokens(token, step, stage);
                    done++;
                    if (++stage == STAGES) {
                        stage = 0;
                        parity ^= 1;
                    }
                }
            }
        }
        __syncwarp();
        if (PARTS > 1) cluster_sync();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(GROUP_REGISTERS));
        wait_for_inputs();
        const int thread = threadIdx.x % GROUP_THREADS;
        u64* const flags = (u64*)(workspace + (size_t)gridDim.x * GROUPS * (SLICE / 8) * GROUP_THREADS);
        auto sums_of = [&](int block) {
            return workspace + (size_t)(block * GROUPS + group) * (SLICE / 8) * GROUP_THREADS + thread;
        };
        auto free_stage = [&](int stage) {
            if (lane == 0) arrive(address_of(&shared.empty[stage]));
        };
        // This thread's two rows of its warp's 16: of one strip, or of gates and of ups, where a warp has half a strip.
        const int first_piece = (GATED ? warp / 2 : warp) * PIECE_BYTES;
        const int second_piece = first_piece + (GATED ? STRIPS / 2 * PIECE_BYTES : 0);
        const bool is_second = GATED && warp % 2;
        constexpr int LEVELS = RUN * 16 > GROUP ? RUN * 16 / GROUP : 1;  // groups that begin in a run
        uint4 words[2];             // of 64 inputs, and two strips
        u32 level_words[LEVELS][2];
        Level levels[2];
        uint4 rows[2][RUN];         // weights of the run that is multiplied, and of the one behind it
        auto load = [&](int stage, int run) {
            const unsigned char* const first = shared.weights[stage] + first_piece;
            const unsigned char* const second = shared.weights[stage] + second_piece;
            if (run * RUN % 4 == 0) {
                words[0] = *(const uint4*)(first + run * RUN / 4 * 512 + lane * 16);
                if (GATED) words[1] = *(const uint4*)(second + run * RUN / 4 * 512 + lane * 16);
            }
            if (run * RUN * 16 % GROUP) return;
#pragma unroll
            for (int i = 0; i < LEVELS; i++) {
                const int place = 1024 + ((run * RUN * 16 / GROUP + i) * 8 + lane / 4) * 8;
                level_words[i][0] = *(const u32*)(first + place + (is_second ? 4 : 0));
                level_words[i][1] = *(const u32*)(second + place + (is_second || !GATED ? 4 : 0));
            }
        };
        auto unpack = [&](int run) {
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                const int k = run * RUN + i;
                if (k * 16 % GROUP == 0) {
                    levels[0] = level_of(level_words[i * 16 / GROUP][0], is_second);
                    levels[1] = level_of(level_words[i * 16 / GROUP][1], is_second || !GATED);
                }
                const u32 word = word_of(words[0], k % 4);
                rows[run % 2][i] = GATED ? weights_of_halves(word, word_of(words[1], k % 4), is_second, levels)
                                         : weights_of_strip(word, levels);
            }
        };
        int stage = 0;
        u32 parity = 0;
        Work work(all, cluster);
        while (work.next(all, cluster, part)) {
            float sums[TOKENS / 2];
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) sums[i] = 0;
            wait_for_bytes(address_of(&shared.ready[stage]), parity);
            load(stage, 0);
            unpack(0);
            int current = stage;
            for (int step = work.first; step < work.last; step++) {
                const u32 tokens = (u32)wgmma_operand(address_of(shared.x[stage]));
                const int before = current;
                current = stage;
#pragma unroll
                for (int run = 0; run < RUNS; run++) {
                    wgmma_fence();
#pragma unroll
                    for (int i = 0; i < RUN; i++) {  // 16 inputs
                        const int k = run * RUN + i;
                        wgmma(sums, rows[run % 2][i], tokens + k / 4 * (BOX_BYTES / 16) + k % 4 * 2);
                    }
                    wgmma_commit();
                    // While they are multiplied, the next ones are made.
                    if (run + 1 == RUNS) {
                        if (++stage == STAGES) {
                            stage = 0;
                            parity ^= 1;
                        }
                        if (step + 1 == work.last) break;
                        wait_for_bytes(address_of(&shared.ready[stage]), parity);
                    }
                    load(stage, (run + 1) % RUNS);
                    wgmma_wait<1>();
                    if (run == 0 && step > work.first) free_stage(before);
                    unpack((run + 1) % RUNS);
                }
            }
            wgmma_wait<0>();
            wgmma_finish(sums);
            free_stage(current);
#if PARTS > 1
            float slice[SLICE / 2];
            exchange(sums, slice, shared, part, group, thread);
#else
            float (&slice)[SLICE / 2] = sums;
#endif
            if (work.begin != 0) {
                float4* const place = sums_of(blockIdx.x);
#pragma unroll
                for (int i = 0; i < SLICE / 8; i++)
                    __stcg(place + i * GROUP_THREADS,
                           make_float4(slice[i * 4], slice[i * 4 + 1], slice[i * 4 + 2], slice[i * 4 + 3]));
                __threadfence();
                group_sync(group);
                if (thread == 0)
                    asm volatile("st.release.gpu.global.u64 [%0], %1;"
                                 :: "l"(flags + blockIdx.x * GROUPS + group), "l"(ticket) : "memory");
                continue;
            }
            int covered = work.rest;  // where a tile ends before its last step, others have the steps from here on
            const int end = covered + all.num_steps - work.end;
            for (int other = cluster + 1; work.end < all.num_steps && covered < end; other++) {
                const int other_end = min(all.rest_begin(other + 1), end);
                if (other_end == covered) continue;
                covered = other_end;
                const int block = (num_clusters - 1 - other) * PARTS + part;
                if (thread == 0) {
                    u64* const flag = flags + block * GROUPS + group;
                    u64 value;
                    do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
                    while (value != ticket);
                    *flag = 0;
                }
                group_sync(group);
                const float4* const place = sums_of(block);
#pragma unroll
                for (int i = 0; i < SLICE / 8; i++) {
                    const float4 more = __ldcg(place + i * GROUP_THREADS);
                    slice[i * 4] += more.x, slice[i * 4 + 1] += more.y;
                    slice[i * 4 + 2] += more.z, slice[i * 4 + 3] += more.w;
                }
            }
            int row_tile, token_tile;
            find_tile(all, work.tile, 0, row_tile, token_tile);
            write_results(slice, output, bias, is_added, row_tile * RESULTS + group * GROUP_RESULTS,
                          token_tile * TOKENS + part * SLICE, num_results, num_tokens, shared.turned[group], group);
        }
    }
}
