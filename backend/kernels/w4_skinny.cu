// Matrix product with four-bit weights in CUDA C++: a linear layer of a few tokens, with what stands beside it fused in.
//
//   y = W norm(x) + bias;   silu(y's first half) * y's second half where GATED;   added to `output` where RESIDUAL
//
// Reading the weight is all that should take time. It comes as w4_weight.py packs it, in pieces of 16 outputs x 128
// inputs, which one bulk copy brings into a warp's own ring in shared memory, and which need no more than a mask and a
// shift to be what tensor cores take (mma.m16n8k16; the weight is the left operand). A nibble under the exponent of
// 2^7 (float16: 2^6) is a number OFFSET + q; what that adds, like the zero, is a multiple of the sum of a group's inputs
// and is taken off once per group, together with the scale.
//
// Strips go in pairs: neighbours, or gates and their ups. A block, or a cluster of blocks that divide the inputs and so
// hold less of x, has every NUM_CLUSTERS-th pair. Of all pieces of its pairs, in a row, each warp has an equal run; what
// the warps and blocks have of a pair is added up at the end, always in the same order.
// The rings are filled before the kernel that makes x has ended (programmatic dependent launch).
//
// Compiled by w4_skinny.py, which defines: SIZE (inputs), OUTPUTS, GROUP (inputs that share a scale), TOKENS (1, 8 or 16:
// how many there may be), CLUSTER (blocks), NUM_CLUSTERS, UNIT (pieces of a copy), STAGES, NORM, BIAS, RESIDUAL, GATED
// (each 0 or 1), IS_HALF (1: float16, 0: bfloat16).
//
// A kernel's code comes from memory too, anew at every launch: loops whose rounds are rare or wait anyway are not unrolled.

#include "prelude.cuh"
#include "cluster.cuh"
#include "w4.cuh"

typedef unsigned char u8;

constexpr int WARPS = 8, THREADS = 32 * WARPS, HALF_WARPS = THREADS / 16;
constexpr int PIECES = (SIZE + 127) / 128, BLOCK_PIECES = (PIECES + CLUSTER - 1) / CLUSTER;  // of a row
constexpr int GROUPS = 128 / GROUP, PIECE_BYTES = 1024 + GROUPS * 64;
constexpr int TOKEN_TILES = (TOKENS + 7) / 8;
constexpr int TILES = TOKENS > 8 ? 1 : 2;  // multiplied side by side, so that fewer products wait for one another
constexpr int X_LANES = TOKENS == 1 ? 4 : 32;  // one token: all eight columns of the product are the same
constexpr int STRIPS = OUTPUTS / 16, PAIRS = (STRIPS + 1) / 2;
constexpr int RESULTS = GATED ? OUTPUTS / 2 : OUTPUTS;
constexpr int CLUSTER_PAIRS = (PAIRS + NUM_CLUSTERS - 1) / NUM_CLUSTERS;  // or one less
constexpr int SLOTS = (CLUSTER_PAIRS + CLUSTER - 1) / CLUSTER;            // pairs that a block finishes
constexpr int UNITS = 8 * TOKENS;                                         // of four sums of one token in a pair
constexpr int THREAD_UNITS = (SLOTS * UNITS + THREADS - 1) / THREADS;
constexpr int THREAD_ITEMS = (BLOCK_PIECES * TOKENS + HALF_WARPS - 1) / HALF_WARPS;
constexpr int BATCHES = (THREAD_ITEMS + 15) / 16, BATCH = (THREAD_ITEMS + BATCHES - 1) / BATCHES;  // under way together
constexpr bool IS_EVEN = PIECES % CLUSTER == 0;
constexpr bool IS_WHOLE = IS_EVEN && SIZE % 128 == 0 && BATCHES * BATCH * HALF_WARPS == BLOCK_PIECES * TOKENS;
constexpr bool IS_SCALED = NORM && IS_HALF;
constexpr u32 ONES = IS_HALF ? 0x3c003c00 : 0x3f803f80;  // 1, twice
constexpr float OFFSET_TO_128 = IS_HALF ? -64 : 0;
static_assert(OUTPUTS % 16 == 0 && (!GATED || OUTPUTS % 32 == 0), "whole strips");
static_assert(SIZE % 8 == 0 && PIECES >= CLUSTER, "every block has inputs");

struct Shared {
    u8 ring[WARPS][STAGES][2][UNIT * PIECE_BYTES];
    uint4 x[BLOCK_PIECES][4][TOKEN_TILES][X_LANES];  // what a lane hands to the tensor cores for 32 inputs
#if NORM
    uint4 norm_weight[BLOCK_PIECES][16];
#endif
    float4 sums[CLUSTER_PAIRS + WARPS - 1][UNITS];  // warp w's of pair p at p + w
    uchar2 sharers[(CLUSTER_PAIRS + 7) / 8 * 8];    // the first and last warp that have pieces of a pair
#if CLUSTER > 1
    float4 received[CLUSTER][SLOTS][UNITS];  // what the blocks of the cluster have of this block's pairs
#endif
    float x_sums[BLOCK_PIECES][GROUPS][TOKENS];
    float half_warp_squares[HALF_WARPS];
    float squares[CLUSTER][TOKENS];
    float unscale[TOKENS];
    unsigned long long full[WARPS][STAGES], norm_came;  // barriers
};

__device__ __forceinline__ void copy_constant(u32 shared, const void* address, int bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(shared), "l"(address), "r"(bytes), "r"(barrier) : "memory");
}

__device__ __forceinline__ float low_of(u32 word) { return to_float((u16)word); }
__device__ __forceinline__ float high_of(u32 word) { return to_float((u16)(word >> 16)); }

// Sums of a token's output g stand at 8 * token + (g + turn) % 8, and words of x for lane t at t ^ quarter, so that what is
// stored together goes to different banks.
__device__ __forceinline__ int turn(int token) { return TOKENS == 1 ? 0 : token & 6; }

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

extern "C" __global__ void
#if CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
__launch_bounds__(THREADS, 2)
w4_skinny(const u8* __restrict__ weight, const u16* x, const u16* __restrict__ norm_weight,
          const u16* __restrict__ bias, u16* output, int num_tokens, float eps) {
    extern __shared__ __align__(128) u8 memory[];
    Shared& shared = *(Shared*)memory;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int rank = blockIdx.x % CLUSTER, cluster = blockIdx.x / CLUSTER;
    const int first_piece = rank * PIECES / CLUSTER;
    const int block_pieces = IS_EVEN ? BLOCK_PIECES : (rank + 1) * PIECES / CLUSTER - first_piece;
    const int num_pairs = (PAIRS - cluster + NUM_CLUSTERS - 1) / NUM_CLUSTERS;  // of this cluster
    const int all_pieces = num_pairs * block_pieces;
    auto run_begin = [&](int warp) { return warp * all_pieces / WARPS; };
    const int begin = run_begin(warp), end = run_begin(warp + 1);
    if (cluster >= NUM_CLUSTERS) {  // takes the place that a second block of the next kernel would take
        let_next_begin();
        wait_for_inputs();
        return;
    }
    if (CLUSTER > 1) cluster_arrive();

    int copied = begin, copied_pair = begin / block_pieces, copied_piece = begin - copied_pair * block_pieces;
    int copied_stage = 0;
    auto copy_next_unit = [&]() {  // one lane
        if (copied >= end) return;
        const int pair = cluster + copied_pair * NUM_CLUSTERS;
        const int strips[2] = {GATED ? pair : 2 * pair, GATED ? pair + PAIRS : min(2 * pair + 1, STRIPS - 1)};
        const int pieces = min(UNIT, min(block_pieces - copied_piece, end - copied));
        const u32 barrier = address_of(&shared.full[warp][copied_stage]);
        expect_bytes(barrier, 2 * pieces * PIECE_BYTES);
#pragma unroll
        for (int s = 0; s < 2; s++)
            copy_constant(address_of(shared.ring[warp][copied_stage][s]),
                          weight + ((size_t)strips[s] * PIECES + first_piece + copied_piece) * PIECE_BYTES,
                          pieces * PIECE_BYTES, barrier);
        if (++copied_stage == STAGES) copied_stage = 0;
        copied += pieces;
        if ((copied_piece += pieces) == block_pieces) copied_piece = 0, copied_pair++;
    };
    if (lane == 0) {
        for (int s = 0; s < STAGES; s++) make_barrier(address_of(&shared.full[warp][s]));
        if (warp == 0) make_barrier(address_of(&shared.norm_came));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#if NORM
        if (warp == 0) {
            const int bytes = 2 * min(block_pieces * 128, SIZE - first_piece * 128);
            expect_bytes(address_of(&shared.norm_came), bytes);
            copy_constant(address_of(shared.norm_weight), norm_weight + first_piece * 128, bytes,
                          address_of(&shared.norm_came));
        }
#endif
#pragma unroll 1
        for (int s = 0; s < STAGES; s++) copy_next_unit();
    }
    __syncwarp();

    // Half a warp brings 128 inputs of a token, always of the same token of TOKENS.
    const int half_warp = thread / 16, token = half_warp % TOKENS, column = thread % 16 * 8;
    auto piece_of = [&](int item) { return (item * HALF_WARPS + half_warp) / TOKENS; };
    auto is_inside = [&](int piece) {
        return IS_WHOLE || (piece < block_pieces && (first_piece + piece) * 128 + column < SIZE);
    };
    // The sums that this thread will finish: of a token, rows g and g + 8 of both strips of a pair.
    const int num_slots = (num_pairs - rank + CLUSTER - 1) / CLUSTER;
    auto finished_token = [&](int unit) { return unit / 8 % TOKENS; };
    auto finished_row = [&](int unit) {
        const int pair = cluster + (unit / UNITS * CLUSTER + rank) * NUM_CLUSTERS;
        return pair * (GATED ? 16 : 32) + (unit - turn(finished_token(unit))) % 8;
    };
    auto is_finished = [&](int unit) { return unit < num_slots * UNITS && finished_token(unit) < num_tokens; };
    u16 biases[THREAD_UNITS][4];
    if (BIAS) {
#pragma unroll
        for (int i = 0; i < THREAD_UNITS; i++) {
            const int row = finished_row(i * THREADS + thread);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int place = row + r % 2 * 8 + r / 2 * (GATED ? RESULTS : 16);
                if (is_finished(i * THREADS + thread) && place < OUTPUTS) biases[i][r] = __ldg(bias + place);
            }
        }
    }
    for (int p = thread; p < num_pairs; p += THREADS)
        shared.sharers[p] = make_uchar2((WARPS * (p * block_pieces + 1) - 1) / all_pieces,
                                        (WARPS * (p + 1) * block_pieces - 1) / all_pieces);
    if (NORM) __syncthreads();  // its barrier is there
    let_next_begin();
    wait_for_inputs();

    u16 old[THREAD_UNITS][4];
    if (RESIDUAL) {
#pragma unroll
        for (int i = 0; i < THREAD_UNITS; i++) {
            const int unit = i * THREADS + thread, row = finished_row(unit);
            const u16* const place = output + (size_t)finished_token(unit) * RESULTS + row;
#pragma unroll
            for (int r = 0; r < (GATED ? 2 : 4); r++)
                if (is_finished(unit) && row + r * 8 < RESULTS) old[i][r] = __ldcg(place + r * 8);
        }
    }
    uint4 values[BATCH];
    float squares = 0;
    auto load_batch = [&](int first) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int piece = piece_of(first + i);
            values[i] = make_uint4(0, 0, 0, 0);
            if (is_inside(piece) && token < num_tokens)  // from L2: L1 may hold lines of the kernel before
                values[i] = __ldcg((const uint4*)(x + (size_t)token * SIZE + (first_piece + piece) * 128 + column));
        }
    };
    auto add_squares = [&]() {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const u32 words[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
#pragma unroll
            for (int w = 0; w < 4; w++)
                squares = fmaf(low_of(words[w]), low_of(words[w]), fmaf(high_of(words[w]), high_of(words[w]), squares));
        }
    };
    auto gather_squares = [&]() {
#pragma unroll
        for (int distance = 8; distance; distance /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, distance);
        if (lane % 16 == 0) shared.half_warp_squares[half_warp] = squares;
    };
    auto block_squares = [&](int of_token) {
        float sum = 0;
#pragma unroll
        for (int h = 0; h < HALF_WARPS; h += TOKENS) sum += shared.half_warp_squares[h + of_token];
        return sum;
    };
    // Inputs times the norm's weight could overflow float16: each block divides its own by their root mean square.
    float scaling = 1;
    if (IS_SCALED) {
#pragma unroll 1
        for (int first = 0; first < THREAD_ITEMS; first += BATCH) {
            load_batch(first);
            add_squares();
        }
        gather_squares();
        __syncthreads();
        scaling = rsqrtf(block_squares(token) / (block_pieces * 128) + 1e-20f);
        if (thread < TOKENS) shared.unscale[thread] = sqrtf(block_squares(thread) / (block_pieces * 128) + 1e-20f);
    }
#pragma unroll 1
    for (int first = 0; first < THREAD_ITEMS; first += BATCH) {
        if (!IS_SCALED || THREAD_ITEMS > BATCH) load_batch(first);
        if (NORM) wait_for_bytes(address_of(&shared.norm_came), 0);
        if (NORM && !IS_SCALED) add_squares();
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int piece = piece_of(first + i);
            u32 words[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
#if NORM
            if (is_inside(piece)) {
                const uint4 factors = shared.norm_weight[piece][column / 8];
                const u32 factor[4] = {factors.x, factors.y, factors.z, factors.w};
#pragma unroll
                for (int w = 0; w < 4; w++)
                    words[w] = pair_of(low_of(words[w]) * scaling * low_of(factor[w]),
                                      high_of(words[w]) * scaling * high_of(factor[w]));
            }
#endif
            float sum = 0;
            if (TOKENS == 1) {  // with more, tensor cores have it sooner: see below
#pragma unroll
                for (int w = 0; w < 4; w++) sum += low_of(words[w]) + high_of(words[w]);
#pragma unroll
                for (int distance = GROUP / 16; distance; distance /= 2)
                    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
            }
            if (IS_WHOLE || piece < block_pieces) {
                // Eight inputs are one half of a product of 16, which four lanes share.
                const int eight = column / 8;
                u32* const place = (u32*)&shared.x[piece][eight / 4][token / 8][token % 8 * 4 % X_LANES] + eight % 4;
#pragma unroll
                for (int w = 0; w < 4; w++) place[(w ^ eight / 4) * 4] = words[w];
                if (TOKENS == 1 && column % GROUP == 0) shared.x_sums[piece][column / GROUP][0] = sum;
            }
        }
    }
    if (NORM && !IS_SCALED) gather_squares();
    __syncthreads();
    if (CLUSTER > 1) {
        cluster_wait();  // every block has begun
        if (NORM && thread < TOKENS) {
            const float squares = block_squares(thread);
#pragma unroll
            for (int r = 0; r < CLUSTER; r++) store(in_block(address_of(&shared.squares[rank][thread]), r), squares);
        }
    }
    for (int piece = warp; TOKENS > 1 && piece < block_pieces; piece += WARPS) {  // the sum of a group's inputs
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++) {
            float sums[4][4] = {};
#pragma unroll
            for (int quarter = 0; quarter < 4; quarter++) {
                const uint4 right = shared.x[piece][quarter][t][(lane ^ quarter) % X_LANES];
                multiply(sums[quarter], make_uint4(ONES, ONES, ONES, ONES), right.x, right.y);
                multiply(sums[quarter], make_uint4(ONES, ONES, ONES, ONES), right.z, right.w);
            }
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                float2 sum = make_float2(0, 0);
#pragma unroll
                for (int quarter = group * GROUP / 32; quarter < (group + 1) * GROUP / 32; quarter++)
                    sum.x += sums[quarter][0], sum.y += sums[quarter][1];
                if (lane < 4) *(float2*)&shared.x_sums[piece][group][(t * 8 + lane * 2) % TOKENS] = sum;
            }
        }
    }
    if (TOKENS > 1) __syncthreads();

    int stage = 0, parity = 0;
    int at = begin, p = begin / block_pieces, first_of_pair = begin - p * block_pieces;
    do {  // also without any pieces: zeros
        const int end_of_pair = min(block_pieces, first_of_pair + end - at);
        float sums[2][TOKEN_TILES][4] = {};
#pragma unroll 1
        for (int first = first_of_pair; first < end_of_pair; first += UNIT) {
            wait_for_bytes(address_of(&shared.full[warp][stage]), parity);
#pragma unroll
            for (int u = 0; u < UNIT; u++) {
                const int piece = first + u;
                if (u && piece >= end_of_pair) break;
                const u8* const pieces[2]
                    = {shared.ring[warp][stage][0] + u * PIECE_BYTES, shared.ring[warp][stage][1] + u * PIECE_BYTES};
                float products[TILES][2][TOKEN_TILES][4];
                // Takes a group's scale and zero into account; its products may be in several tiles.
                auto add_group = [&](int group, int first_tile, int num_tiles) {
                    float2 x_sum[TOKEN_TILES];
#pragma unroll
                    for (int t = 0; t < TOKEN_TILES; t++)
                        x_sum[t] = TOKENS == 1
                            ? make_float2(shared.x_sums[piece][group][0], 0)
                            : *(const float2*)&shared.x_sums[piece][group][t * 8 + lane % 4 * 2 % TOKENS];
#pragma unroll
                    for (int s = 0; s < 2; s++) {
                        const uint2 rows = *(const uint2*)(pieces[s] + 1024 + (group * 8 + lane / 4) * 8);
                        const u32 row[2] = {rows.x, rows.y};
#pragma unroll
                        for (int h = 0; h < 2; h++) {
                            const float scale = half_to_float(row[h]);
                            const float zero = -(__uint_as_float(row[h] & 0xffff0000u) + OFFSET_TO_128);
#pragma unroll
                            for (int t = 0; t < TOKEN_TILES; t++) {
#pragma unroll
                                for (int j = 0; j < (TOKENS == 1 ? 1 : 2); j++) {
                                    float product = (j ? x_sum[t].y : x_sum[t].x) * zero;
#pragma unroll
                                    for (int i = 0; i < num_tiles; i++)
                                        product += products[first_tile + i][s][t][2 * h + j];
                                    sums[s][t][2 * h + j] = fmaf(product, scale, sums[s][t][2 * h + j]);
                                }
                            }
                        }
                    }
                };
#pragma unroll
                for (int tile = 0; tile < 2; tile += TILES) {
                    uint4 words[TILES][2];
#pragma unroll
                    for (int i = 0; i < TILES; i++)
#pragma unroll
                        for (int s = 0; s < 2; s++)
                            words[i][s] = *(const uint4*)(pieces[s] + (tile + i) * 512 + lane * 16);
#pragma unroll
                    for (int half = 0; half < 2; half++) {  // 32 inputs of each tile
                        if ((tile * 2 + half) * 32 % GROUP == 0) {
#pragma unroll
                            for (int i = 0; i < TILES * 8 * TOKEN_TILES; i++) (&products[0][0][0][0])[i] = 0;
                        }
                        uint4 inputs[TILES][TOKEN_TILES];
#pragma unroll
                        for (int i = 0; i < TILES; i++)
#pragma unroll
                            for (int t = 0; t < TOKEN_TILES; t++)
                                inputs[i][t]
                                    = shared.x[piece][(tile + i) * 2 + half][t][(lane ^ (tile + i) * 2 + half) % X_LANES];
#pragma unroll
                        for (int j = 0; j < 2; j++) {
#pragma unroll
                            for (int i = 0; i < TILES; i++) {
#pragma unroll
                                for (int s = 0; s < 2; s++) {
                                    const uint4 w = words[i][s];
                                    const uint4 left = unpacked(half ? (j ? w.w : w.z) : (j ? w.y : w.x));
#pragma unroll
                                    for (int t = 0; t < TOKEN_TILES; t++) {
                                        const uint4 right = inputs[i][t];
                                        multiply(products[i][s][t], left, j ? right.z : right.x, j ? right.w : right.y);
                                    }
                                }
                            }
                        }
                        if (GROUP == 128 && tile + TILES == 2 && half) add_group(0, 0, TILES);
#pragma unroll
                        for (int i = 0; i < TILES; i++) {
                            if (GROUP == 64 && half) add_group(tile + i, i, 1);
                            if (GROUP == 32) add_group((tile + i) * 2 + half, i, 1);
                        }
                    }
                }
            }
            __syncwarp();
            if (lane == 0) copy_next_unit();
            if (++stage == STAGES) stage = 0, parity ^= 1;
        }
#pragma unroll
        for (int t = 0; t < TOKEN_TILES; t++) {
#pragma unroll
            for (int j = 0; j < (TOKENS == 1 ? 1 : 2); j++) {
                const int of_token = TOKENS == 1 ? 0 : t * 8 + lane % 4 * 2 + j;
                if (TOKENS == 1 ? lane % 4 : of_token >= num_tokens) continue;
                const float factor = IS_SCALED ? shared.unscale[of_token] : 1;
                const float4 sum = make_float4(sums[0][t][j] * factor, sums[0][t][2 + j] * factor,
                                               sums[1][t][j] * factor, sums[1][t][2 + j] * factor);
                shared.sums[p + warp][of_token * 8 + (lane / 4 + turn(of_token)) % 8] = sum;
            }
        }
        at += end_of_pair - first_of_pair;
        first_of_pair = 0;
        p++;
    } while (at < end);
    __syncthreads();
    auto block_sum = [&](int p, int unit) {
        const uchar2 warps = shared.sharers[p];
        float4 sum = shared.sums[p + warps.x][unit];
#pragma unroll 1
        for (int w = warps.x + 1; w <= warps.y; w++) sum = plus(sum, shared.sums[p + w][unit]);
        return sum;
    };
#if CLUSTER > 1
#pragma unroll 1
    for (int u = thread; u < num_pairs * UNITS; u += THREADS) {
        const int p = u / UNITS, unit = u % UNITS;
        if (unit / 8 < num_tokens)
            store(in_block(address_of(&shared.received[rank][p / CLUSTER][unit]), p % CLUSTER), block_sum(p, unit));
    }
    __syncwarp();
    cluster_sync();
#endif

#pragma unroll
    for (int i = 0; i < THREAD_UNITS; i++) {
        const int unit = i * THREADS + thread;
        if (!is_finished(unit)) continue;
        const int slot = unit / UNITS, of_token = finished_token(unit), row = finished_row(unit);
#if CLUSTER > 1
        float4 sum = shared.received[0][slot][unit % UNITS];
#pragma unroll
        for (int r = 1; r < CLUSTER; r++) sum = plus(sum, shared.received[r][slot][unit % UNITS]);
#else
        const float4 sum = block_sum(slot, unit % UNITS);
#endif
        float total[4] = {sum.x, sum.y, sum.z, sum.w};
        if (NORM) {
            float all_squares = 0;
            if (CLUSTER == 1) all_squares = block_squares(of_token);
            else
                for (int r = 0; r < CLUSTER; r++) all_squares += shared.squares[r][of_token];
            const float scale = rsqrtf(all_squares / SIZE + eps);
#pragma unroll
            for (int r = 0; r < 4; r++) total[r] *= scale;
        }
        if (BIAS) {
#pragma unroll
            for (int r = 0; r < 4; r++) total[r] += to_float(biases[i][r]);
        }
        if (GATED) {
#pragma unroll
            for (int r = 0; r < 2; r++) total[r] = total[r] / (1 + __expf(-total[r])) * total[2 + r];
        }
#pragma unroll
        for (int r = 0; r < (GATED ? 2 : 4); r++) {
            if (row + r * 8 >= RESULTS) continue;
            if (RESIDUAL) total[r] += to_float(old[i][r]);
            output[(size_t)of_token * RESULTS + row + r * 8] = from_float(total[r]);
        }
    }
}
