// Boxes of a tensor that the copy engine brings into shared memory (TMA), as stream_k.tensor_map describes the tensor.

struct __align__(64) TensorMap { u64 words[16]; };

// How long L2 keeps what is copied.
__device__ __forceinline__ u64 evict_first() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ u64 evict_last() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0;" : "=l"(policy));
    return policy;
}

// A box of inputs from k on of tokens from `token` on, into this block, or with TO_ALL into those of `sharers`, one bit a
// rank.
template <bool TO_ALL>
__device__ __forceinline__ void copy_x(u32 shared, const TensorMap& map, u32 barrier, int k, int token, u16 sharers,
                                       u64 policy) {
    if (TO_ALL)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;"
                     :: "r"(shared), "l"(&map), "r"(k), "r"(token), "r"(barrier),
                        "h"(sharers), "l"(policy) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                     "[%0], [%1, {%2, %3}], [%4], %5;"
                     :: "r"(shared), "l"(&map), "r"(k), "r"(token), "r"(barrier), "l"(policy) : "memory");
}
