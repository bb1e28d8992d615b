// Decode attention over a 16-bit KV cache in CUDA C++: rotary, KV store, attention, merge, as in decode_attention.py.
//
// Some blocks of a cluster, or all, have a row's KV head to themselves, each block an equal run of its tokens, and what
// they have found is added up through their shared memory: no partial sums in memory, no counter of who has finished.
// What few rows have cached is read in a few microseconds; what takes time is what waits for something else. So all that
// the first STAGES tiles of each warp need is under way before the kernel that makes q has ended (programmatic dependent
// launch).
//
// A warp multiplies 16 tokens with the query heads, at most 8, in instructions of the tensor cores, and keeps its own
// running softmax. In shared memory the 16-byte chunks of a token change places by the token's number, so that neither
// the copies nor ldmatrix meet in a bank.
//
// Compiled by decode_cluster.py, which defines: HEAD_DIM (64 or 128, all of it rotated), NUM_HEADS, NUM_KV_HEADS,
// BLOCK_SIZE, CLUSTER (blocks), WARPS (of a block), STAGES (tiles of a warp under way), NUM_SHARES (of all rows' tokens,
// see find_work; 0: a row's KV head has a whole cluster), SHARED_BYTES (of a block), IS_HALF (1: float16, 0: bfloat16).

#include "prelude.cuh"
#include "cluster.cuh"

constexpr int THREADS = 32 * WARPS, TILE = 16, HEADS = 8;  // tokens, query heads of a product
constexpr int GROUP = NUM_HEADS / NUM_KV_HEADS;
constexpr int CHUNKS = HEAD_DIM / 8;                         // of a token, 16 bytes each
constexpr int COPY_TOKENS = 32 / CHUNKS;                     // that a warp copies at once
constexpr int FOURS = GROUP * HEAD_DIM / 4;                  // of a row and KV head: results, four at a time
constexpr int SUM_PITCH = HEAD_DIM + 4;                      // floats
constexpr float SLACK = 8;  // weights may grow to 2 ** 8 before the sums are scaled to a new maximum
static_assert(GROUP <= HEADS && BLOCK_SIZE % TILE == 0 && (HEAD_DIM == 64 || HEAD_DIM == 128), "");
static_assert((CLUSTER & (CLUSTER - 1)) == 0 && FOURS % CLUSTER == 0, "");

struct Shared {
    u16 ring[WARPS][STAGES][2][TILE][HEAD_DIM];  // of keys and values. Afterwards a warp's sums
    u16 query[HEADS][HEAD_DIM];
    float4 received[FOURS][2];  // of each block its share: sums, and the maximum and weight they go with
    float best[WARPS][HEADS], weight[WARPS][HEADS];
    u64 barrier;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "");
static_assert(sizeof(u16[STAGES][2][TILE][HEAD_DIM]) >= sizeof(float[GROUP][SUM_PITCH]), "");

// Bytes from the first of these rows to one of its chunks.
__device__ __forceinline__ u32 place_of(int row, int chunk) {
    return row * (HEAD_DIM * 2) + ((chunk ^ (row % 8)) << 4);
}

// Four 8 x 8 matrices, of which thread 8 m + r has given the place of row r of matrix m.
__device__ __forceinline__ uint4 load_matrices(u32 row) {
    uint4 value;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(row) : "memory");
    return value;
}

// Zeros where it is not there.
__device__ __forceinline__ void copy(u32 target, const u16* source, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(target), "l"(source), "r"(is_there ? 16 : 0) : "memory");
}

// Both words' values of two dimensions half a head apart, rotated and rounded.
__device__ __forceinline__ void rotate(u32& first, u32& second, float2 cosine, float2 sine) {
    const float low = to_float((u16)first), high = to_float((u16)(first >> 16));
    const float other_low = to_float((u16)second), other_high = to_float((u16)(second >> 16));
    first = pair_of(low * cosine.x - other_low * sine.x, high * cosine.y - other_high * sine.y);
    second = pair_of(other_low * cosine.x + low * sine.x, other_high * cosine.y + high * sine.y);
}

// Two chunks half a head apart.
__device__ __forceinline__ void rotate(uint4& first, uint4& second, const float4 (&cosine)[2],
                                       const float4 (&sine)[2]) {
    rotate(first.x, second.x, make_float2(cosine[0].x, cosine[0].y), make_float2(sine[0].x, sine[0].y));
    rotate(first.y, second.y, make_float2(cosine[0].z, cosine[0].w), make_float2(sine[0].z, sine[0].w));
    rotate(first.z, second.z, make_float2(cosine[1].x, cosine[1].y), make_float2(sine[1].x, sine[1].y));
    rotate(first.w, second.w, make_float2(cosine[1].z, cosine[1].w), make_float2(sine[1].z, sine[1].w));
}

// A block is number `rank` of the `num_blocks` that share a row's KV head, of which `first` is the first in its cluster.
// context_len 0: there is nothing to do.
struct Work { int row, kv_head, context_len, num_blocks, rank, first; };

// With NUM_SHARES a KV head has the fewest blocks, a power of two, of which none has more than a share of all tokens, so
// that a long row has as many as there are and a short one among many no more than it needs. Decided here, from the
// lengths, so that one CUDA graph serves all: a row has the next few clusters behind those of the row before it.
__device__ __forceinline__ Work find_work(const int* context_lens, int num_rows) {
    int cluster = blockIdx.x / CLUSTER;
    const int own = blockIdx.x % CLUSTER;
#if NUM_SHARES
    const int lane = threadIdx.x % 32;
    int all_tokens = 0;
    for (int row = lane; row < num_rows; row += 32) all_tokens += context_lens[row];
    const int share = (__reduce_add_sync(ALL, all_tokens) + NUM_SHARES - 1) / NUM_SHARES;
    for (int start = 0; start < num_rows; start += 32) {
        const int context_len = start + lane < num_rows ? context_lens[start + lane] : 0;
        int num_blocks = 1;
        while (num_blocks < CLUSTER && num_blocks * share < context_len) num_blocks *= 2;
        const int count = context_len ? (NUM_KV_HEADS * num_blocks + CLUSTER - 1) / CLUSTER : 0;
        int end = count;
        #pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int other = __shfl_up_sync(ALL, end, distance);
            if (lane >= distance) end += other;
        }
        const u32 later = __ballot_sync(ALL, cluster < end);
        if (later) {
            const int member = __ffs(later) - 1, blocks = __shfl_sync(ALL, num_blocks, member);
            const int place = (cluster - __shfl_sync(ALL, end - count, member)) * CLUSTER + own;
            const int rank = place % blocks, len = __shfl_sync(ALL, context_len, member);
            return {start + member, place / blocks, place / blocks < NUM_KV_HEADS ? len : 0, blocks, rank, own - rank};
        }
        cluster -= __shfl_sync(ALL, end, 31);
    }
    return {};
#else
    const int row = cluster / NUM_KV_HEADS;
    return {row, cluster % NUM_KV_HEADS, context_lens[row], CLUSTER, own, 0};
#endif
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS) decode_cluster(
        const u16* q, const u16* k, const u16* v, const long long* positions, const float* cos_sin, u16* k_cache,
        u16* v_cache, const long long* slot_mapping, const int* block_tables, const int* context_lens, u16* output,
        long long q_row_stride, long long q_head_stride, long long k_row_stride, long long k_head_stride,
        long long v_row_stride, long long v_head_stride, long long table_stride, float scale_log2, int num_rows) {
    extern __shared__ __align__(256) unsigned char memory[];
    Shared& shared = *(Shared*)memory;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    let_next_begin();
    const Work work = find_work(context_lens, num_rows);
    if (work.context_len == 0) {
        if (blockIdx.x == 0) wait_for_inputs();  // the grid ends after the one in front of it
        return;
    }
    const int kv_head = work.kv_head, context_len = work.context_len, rank = work.rank, num_blocks = work.num_blocks;
    const long long row = work.row;
    const int log_blocks = 31 - __clz(num_blocks), num_fours = FOURS >> log_blocks;  // that a block finishes
    const u32 barrier = address_of(&shared.barrier);
    if (thread == 0) {
        make_barrier(barrier);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect_bytes(barrier, sizeof(shared.received));
    }
    cluster_arrive();

    // A warp has every WARPS-th tile of the block's, the last one first: that of the new token is a known one's first.
    const int cached_len = context_len - 1, num_tiles = (context_len + TILE - 1) / TILE;
    const int first_tile = num_tiles * rank >> log_blocks;
    int tile = (num_tiles * (rank + 1) >> log_blocks) - 1 - warp;
    const int* block_table = block_tables + row * table_stride;
    const u32 ring = address_of(shared.ring[warp]);
    constexpr int STAGE_BYTES = sizeof(u16[2][TILE][HEAD_DIM]), TILE_BYTES = STAGE_BYTES / 2;

    // Earlier tokens are of earlier steps, or were stored before the kernel in front of this one began: see
    // layers/attention.py.
    auto block_of = [&](int from) { return from < first_tile ? 0 : block_table[from * TILE / BLOCK_SIZE]; };
    int copied_tile = tile, block = block_of(tile);  // the next one
    const u32 copy_place = place_of(lane / CHUNKS, lane % CHUNKS);
    auto copy_tile = [&](int stage) {
        if (copied_tile >= first_tile) {
            const int token = copied_tile * TILE, num_cached = cached_len - token;
            const long long place = ((long long)block * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + token % BLOCK_SIZE;
            const u16* keys = k_cache + place * HEAD_DIM + lane * 8;
            const u16* values = v_cache + place * HEAD_DIM + lane * 8;
            const u32 target = ring + stage * STAGE_BYTES;
            #pragma unroll
            for (int each = 0; each < TILE; each += COPY_TOKENS) {
                const u32 to = target + each * (HEAD_DIM * 2) + (copy_place ^ (each % 8 << 4));
                const int mine = each + lane / CHUNKS;
                if (mine == num_cached) continue;  // the new token
                copy(to, keys + each * HEAD_DIM, mine < num_cached);
                copy(to + TILE_BYTES, values + each * HEAD_DIM, mine < num_cached);
            }
        }
        close_group();
        copied_tile -= WARPS;
        block = block_of(copied_tile);
    };
    #pragma unroll 1
    for (int stage = 0; stage < STAGES; ++stage) copy_tile(stage);

    // Each thread rotates a chunk of a query head, or of the new key, with the chunk half a head behind it.
    const int chunk = thread % (CHUNKS / 2);
    float4 cosine[2], sine[2];
    const float* angles = cos_sin + positions[row] * HEAD_DIM + chunk * 8;
    #pragma unroll
    for (int each = 0; each < 2; ++each) {
        cosine[each] = *(const float4*)(angles + each * 4);
        sine[each] = *(const float4*)(angles + HEAD_DIM / 2 + each * 4);
    }
    wait_for_inputs();

    const bool has_new = rank == num_blocks - 1;
    const long long slot = slot_mapping[row];
    const long long new_place = (slot / BLOCK_SIZE * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE;
    const int new_row = cached_len % TILE;  // of the block's first warp's first tile
    unsigned char* new_keys = (unsigned char*)shared.ring[0][0][0];
    for (int pair = thread; pair < (HEADS + has_new) * (CHUNKS / 2); pair += THREADS) {
        const int member = pair / (CHUNKS / 2);
        const u16* from = member < HEADS ? q + row * q_row_stride + (kv_head * GROUP + member) * q_head_stride
                                         : k + row * k_row_stride + kv_head * k_head_stride;
        uint4 first = make_uint4(0, 0, 0, 0), second = first;
        if (member < GROUP || member == HEADS) {
            first = load_fresh(from + chunk * 8);
            second = load_fresh(from + HEAD_DIM / 2 + chunk * 8);
            rotate(first, second, cosine, sine);
        }
        unsigned char* to = member < HEADS ? (unsigned char*)shared.query : new_keys;
        const int to_row = member < HEADS ? member : new_row;
        *(uint4*)(to + place_of(to_row, chunk)) = first;
        *(uint4*)(to + place_of(to_row, chunk + CHUNKS / 2)) = second;
        if (member == HEADS) {
            *(uint4*)(k_cache + new_place * HEAD_DIM + chunk * 8) = first;
            *(uint4*)(k_cache + new_place * HEAD_DIM + HEAD_DIM / 2 + chunk * 8) = second;
        }
    }
    if (has_new && thread >= THREADS - CHUNKS) {  // those that had the least to do
        const int each = thread - (THREADS - CHUNKS);
        const uint4 value = load_fresh(v + row * v_row_stride + kv_head * v_head_stride + each * 8);
        *(uint4*)(new_keys + TILE_BYTES + place_of(new_row, each)) = value;
        *(uint4*)(v_cache + new_place * HEAD_DIM + each * 8) = value;
    }
    __syncthreads();

    // Lane 4 r + c has of a query head r the dimensions 2 c, 2 c + 1 and 2 c + 8, 2 c + 9 of each 16.
    u32 query[HEAD_DIM / 16][2];
    #pragma unroll
    for (int pair = 0; pair < HEAD_DIM / 32; ++pair) {
        const uint4 found = load_matrices(address_of(shared.query) + place_of(lane % 8, pair * 4 + lane / 8));
        query[2 * pair][0] = found.x;
        query[2 * pair][1] = found.y;
        query[2 * pair + 1][0] = found.z;
        query[2 * pair + 1][1] = found.w;
    }
    const u32 key_place = place_of(lane % 16, lane / 16);
    const u32 value_place = place_of(lane % 8 + lane / 16 * 8, lane / 8 % 2);

    float best[2] = {-INFINITE, -INFINITE}, weight[2] = {0, 0};  // of heads 2 (lane % 4) and the next
    float attended[HEAD_DIM / 16][4] = {};  // dimension lane / 4 with these heads, then dimension lane / 4 + 8
    #pragma unroll 1
    for (int stage = 0; tile >= first_tile; tile -= WARPS, stage = stage + 1 < STAGES ? stage + 1 : 0) {
        wait_for_groups_but<STAGES - 1>();
        __syncwarp();
        const u32 keys = ring + stage * STAGE_BYTES, values = keys + TILE_BYTES;
        float score[4] = {}, other[4] = {};  // token lane / 4 with both heads, then token lane / 4 + 8
        #pragma unroll
        for (int part = 0; part < HEAD_DIM / 16; ++part)  // two chunks further each, which is a bit that no row has
            multiply(part % 2 ? other : score, load_matrices(keys + (key_place ^ (part * 32))), query[part][0],
                     query[part][1]);
        #pragma unroll
        for (int each = 0; each < 4; ++each) {
            const bool is_there = tile * TILE + lane / 4 + each / 2 * 8 < context_len;
            score[each] = is_there ? (score[each] + other[each]) * scale_log2 : -INFINITE;
        }
        const float top[2] = {fmaxf(score[0], score[2]), fmaxf(score[1], score[3])};
        if (__any_sync(ALL, top[0] > best[0] + SLACK || top[1] > best[1] + SLACK)) {
            #pragma unroll
            for (int which = 0; which < 2; ++which) {
                float maximum = fmaxf(best[which], top[which]);
                #pragma unroll
                for (int distance = 4; distance < 32; distance *= 2)
                    maximum = fmaxf(maximum, __shfl_xor_sync(ALL, maximum, distance));
                const float decay = exp2_of(best[which] - maximum);
                best[which] = maximum;
                weight[which] *= decay;
                #pragma unroll
                for (int part = 0; part < HEAD_DIM / 16; ++part) {
                    attended[part][which] *= decay;
                    attended[part][2 + which] *= decay;
                }
            }
        }
        #pragma unroll
        for (int which = 0; which < 2; ++which) {
            score[which] = exp2_of(score[which] - best[which]);
            score[2 + which] = exp2_of(score[2 + which] - best[which]);
            weight[which] += score[which] + score[2 + which];
        }
        const u32 first = transposed(pair_of(score[0], score[1])), second = transposed(pair_of(score[2], score[3]));
        #pragma unroll
        for (int part = 0; part < HEAD_DIM / 16; ++part) {
            u32 value[4];
            load_turned(values + (value_place ^ (part * 32)), value);
            multiply(attended[part], make_uint4(value[0], value[1], value[2], value[3]), first, second);
        }
        __syncwarp();
        copy_tile(stage);
    }

    // What the warp has, in its part of the ring, which it alone used.
    float (*sums)[SUM_PITCH] = (float (*)[SUM_PITCH])shared.ring[warp];
    wait_for_groups_but<0>();
    __syncwarp();
    #pragma unroll
    for (int which = 0; which < 2; ++which) {
        #pragma unroll
        for (int distance = 4; distance < 32; distance *= 2)
            weight[which] += __shfl_xor_sync(ALL, weight[which], distance);
        const int member = 2 * (lane % 4) + which;
        if (member >= GROUP) continue;
        if (lane < 4) {
            shared.best[warp][member] = best[which];
            shared.weight[warp][member] = weight[which];
        }
        #pragma unroll
        for (int part = 0; part < HEAD_DIM / 16; ++part) {
            sums[member][part * 16 + lane / 4] = attended[part][which];
            sums[member][part * 16 + lane / 4 + 8] = attended[part][2 + which];
        }
    }
    __syncthreads();
    cluster_wait();  // every block has made its barrier
    for (int four = thread; four < FOURS; four += THREADS) {
        const int member = four / (HEAD_DIM / 4);
        float top = -INFINITE, all = 0;
        float4 sum = make_float4(0, 0, 0, 0);
        for (int each = 0; each < WARPS; ++each) top = fmaxf(top, shared.best[each][member]);
        for (int each = 0; each < WARPS; ++each) {
            const float its_best = shared.best[each][member];
            const float factor = its_best == -INFINITE ? 0 : exp2_of(its_best - top);  // a warp without tokens
            const float4 its_sum = ((const float4*)shared.ring[each])[member * (SUM_PITCH / 4) + four % (HEAD_DIM / 4)];
            all += factor * shared.weight[each][member];
            sum.x += factor * its_sum.x;
            sum.y += factor * its_sum.y;
            sum.z += factor * its_sum.z;
            sum.w += factor * its_sum.w;
        }
        const int target = four * num_blocks / FOURS, place = (rank - target) * num_fours + four;
        const u32 address = in_block(address_of(shared.received[place]), work.first + target);
        const u32 its_barrier = in_block(barrier, work.first + target);
        send(address, sum, its_barrier);
        send(address + 16, make_float4(top, all, 0, 0), its_barrier);
    }

    wait_for_bytes(barrier, 0);
    for (int four = thread; four < num_fours; four += THREADS) {
        float top = -INFINITE, all = 0;
        float4 sum = make_float4(0, 0, 0, 0);
        for (int each = 0; each < num_blocks; ++each) top = fmaxf(top, shared.received[each * num_fours + four][1].x);
        for (int each = 0; each < num_blocks; ++each) {
            const float4 (&received)[2] = shared.received[each * num_fours + four];
            const float4 its_sum = received[0], its = received[1];
            const float factor = exp2_of(its.x - top);  // 0 for a block without tokens
            all += factor * its.y;
            sum.x += factor * its_sum.x;
            sum.y += factor * its_sum.y;
            sum.z += factor * its_sum.z;
            sum.w += factor * its_sum.w;
        }
        *(uint2*)(output + (row * NUM_HEADS + kv_head * GROUP) * HEAD_DIM + (rank * num_fours + four) * 4) =
            make_uint2(pair_of(sum.x / all, sum.y / all), pair_of(sum.z / all, sum.w / all));
    }
}
