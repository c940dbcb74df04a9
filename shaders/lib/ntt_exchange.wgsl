// How the values of a block, 16 an invocation, change hands between passes. The constants are the including file's.

var<workgroup> exchange: array<u32, BLOCK_WORDS>;

// Spreads quads and strides of 16 and more over 32 banks without padding: a permutation of each 32 words. Strides of 2, 4 and
// 8 leave two words a bank.
fn swizzle(i: u32) -> u32 {
    return i ^ ((i >> 5u) & 15u) ^ ((i >> 4u) & 16u);
}

// In the pass on the stages from s on, invocation t holds the words first_word + (k << (LOG_THREADS - s)), k < 16, of the
// block, which belong to block t >> (LOG_THREADS - s) of stage s.
fn first_word(t: u32, s: u32) -> u32 {
    let low = LOG_THREADS - s;
    return ((t >> low) << (low + 4u)) | (t & ((1u << low) - 1u));
}

fn pass_node(block: u32, t: u32, s: u32) -> u32 {
    return (((1u << LOG_BLOCKS) + block) << s) + (t >> (LOG_THREADS - s));
}

// Values go from one layout to another through workgroup memory. Each invocation writes where it has last read, so that one
// barrier between is enough.
fn put(v: ptr<function, Values>, t: u32, stage: u32) {
    let word = first_word(t, stage);
    let low = LOG_THREADS - stage;
    exchange[swizzle(word + (0u << low))] = (*v)[0];
    exchange[swizzle(word + (1u << low))] = (*v)[1];
    exchange[swizzle(word + (2u << low))] = (*v)[2];
    exchange[swizzle(word + (3u << low))] = (*v)[3];
    exchange[swizzle(word + (4u << low))] = (*v)[4];
    exchange[swizzle(word + (5u << low))] = (*v)[5];
    exchange[swizzle(word + (6u << low))] = (*v)[6];
    exchange[swizzle(word + (7u << low))] = (*v)[7];
    exchange[swizzle(word + (8u << low))] = (*v)[8];
    exchange[swizzle(word + (9u << low))] = (*v)[9];
    exchange[swizzle(word + (10u << low))] = (*v)[10];
    exchange[swizzle(word + (11u << low))] = (*v)[11];
    exchange[swizzle(word + (12u << low))] = (*v)[12];
    exchange[swizzle(word + (13u << low))] = (*v)[13];
    exchange[swizzle(word + (14u << low))] = (*v)[14];
    exchange[swizzle(word + (15u << low))] = (*v)[15];
}

fn take(v: ptr<function, Values>, t: u32, stage: u32) {
    let word = first_word(t, stage);
    let low = LOG_THREADS - stage;
    (*v)[0] = exchange[swizzle(word + (0u << low))];
    (*v)[1] = exchange[swizzle(word + (1u << low))];
    (*v)[2] = exchange[swizzle(word + (2u << low))];
    (*v)[3] = exchange[swizzle(word + (3u << low))];
    (*v)[4] = exchange[swizzle(word + (4u << low))];
    (*v)[5] = exchange[swizzle(word + (5u << low))];
    (*v)[6] = exchange[swizzle(word + (6u << low))];
    (*v)[7] = exchange[swizzle(word + (7u << low))];
    (*v)[8] = exchange[swizzle(word + (8u << low))];
    (*v)[9] = exchange[swizzle(word + (9u << low))];
    (*v)[10] = exchange[swizzle(word + (10u << low))];
    (*v)[11] = exchange[swizzle(word + (11u << low))];
    (*v)[12] = exchange[swizzle(word + (12u << low))];
    (*v)[13] = exchange[swizzle(word + (13u << low))];
    (*v)[14] = exchange[swizzle(word + (14u << low))];
    (*v)[15] = exchange[swizzle(word + (15u << low))];
}

fn put_quads(v: ptr<function, Values>, t: u32) {
    exchange[swizzle(4u * (t + 0u * THREADS) + 0u)] = (*v)[0];
    exchange[swizzle(4u * (t + 0u * THREADS) + 1u)] = (*v)[1];
    exchange[swizzle(4u * (t + 0u * THREADS) + 2u)] = (*v)[2];
    exchange[swizzle(4u * (t + 0u * THREADS) + 3u)] = (*v)[3];
    exchange[swizzle(4u * (t + 1u * THREADS) + 0u)] = (*v)[4];
    exchange[swizzle(4u * (t + 1u * THREADS) + 1u)] = (*v)[5];
    exchange[swizzle(4u * (t + 1u * THREADS) + 2u)] = (*v)[6];
    exchange[swizzle(4u * (t + 1u * THREADS) + 3u)] = (*v)[7];
    exchange[swizzle(4u * (t + 2u * THREADS) + 0u)] = (*v)[8];
    exchange[swizzle(4u * (t + 2u * THREADS) + 1u)] = (*v)[9];
    exchange[swizzle(4u * (t + 2u * THREADS) + 2u)] = (*v)[10];
    exchange[swizzle(4u * (t + 2u * THREADS) + 3u)] = (*v)[11];
    exchange[swizzle(4u * (t + 3u * THREADS) + 0u)] = (*v)[12];
    exchange[swizzle(4u * (t + 3u * THREADS) + 1u)] = (*v)[13];
    exchange[swizzle(4u * (t + 3u * THREADS) + 2u)] = (*v)[14];
    exchange[swizzle(4u * (t + 3u * THREADS) + 3u)] = (*v)[15];
}

fn take_quads(v: ptr<function, Values>, t: u32) {
    (*v)[0] = exchange[swizzle(4u * (t + 0u * THREADS) + 0u)];
    (*v)[1] = exchange[swizzle(4u * (t + 0u * THREADS) + 1u)];
    (*v)[2] = exchange[swizzle(4u * (t + 0u * THREADS) + 2u)];
    (*v)[3] = exchange[swizzle(4u * (t + 0u * THREADS) + 3u)];
    (*v)[4] = exchange[swizzle(4u * (t + 1u * THREADS) + 0u)];
    (*v)[5] = exchange[swizzle(4u * (t + 1u * THREADS) + 1u)];
    (*v)[6] = exchange[swizzle(4u * (t + 1u * THREADS) + 2u)];
    (*v)[7] = exchange[swizzle(4u * (t + 1u * THREADS) + 3u)];
    (*v)[8] = exchange[swizzle(4u * (t + 2u * THREADS) + 0u)];
    (*v)[9] = exchange[swizzle(4u * (t + 2u * THREADS) + 1u)];
    (*v)[10] = exchange[swizzle(4u * (t + 2u * THREADS) + 2u)];
    (*v)[11] = exchange[swizzle(4u * (t + 2u * THREADS) + 3u)];
    (*v)[12] = exchange[swizzle(4u * (t + 3u * THREADS) + 0u)];
    (*v)[13] = exchange[swizzle(4u * (t + 3u * THREADS) + 1u)];
    (*v)[14] = exchange[swizzle(4u * (t + 3u * THREADS) + 2u)];
    (*v)[15] = exchange[swizzle(4u * (t + 3u * THREADS) + 3u)];
}
