//! The inner loop of half-gates: one group of instances, one lane each, through the instructions of a circuit.
//!
//! The loop runs inside the AES implementation's vector code (a closure that the `aes` crate calls with CPU features
//! enabled), so that hashing and label arithmetic compile to the same wide instructions without any `unsafe` here.

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InOut, ParBlocks};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::circuit::{Circuit, Gate, Term, Words};
use super::half_gates::{GROUP, KeySchedule, gate_tweak};
use crate::arith::{PrimeModulus, ShareModulus};
use crate::mpc::block::{BLOCK_BYTES, Block};

type AesBlock = Array<u8, U16>;

/// Labels of one wire in `N / 2` instances: low word, high word, low word, ...
type Lanes<const N: usize> = [u64; N];

/// Bytes of a vector register.
const PIECE_BYTES: usize = 64;

/// Words of a full group.
const FULL: usize = 2 * GROUP;

/// Words of a narrow group, for the few rows of short texts.
const NARROW: usize = 16;

/// Input labels of a group in the order `[instance][input]`, as words, low word first.
#[derive(Clone, Copy)]
pub(super) struct GroupLabels<'a> {
    pub garbler: &'a [u64],
    pub evaluator: &'a [u64],
    /// Instances, at most [`GROUP`].
    pub width: usize,
}

/// Working memory for groups of one circuit; wiped on drop.
pub(super) struct Scratch {
    slots: usize,
    full: Option<Box<Space<FULL>>>,
    narrow: Option<Box<Space<NARROW>>>,
    /// Word `w` of instance `i` at `w * GROUP + i`: sums of projected values, or of their masks.
    sums: Vec<u64>,
}

impl Scratch {
    pub(super) fn new(circuit: &Circuit) -> Self {
        Self {
            slots: circuit.slots(),
            full: None,
            narrow: None,
            sums: vec![0; circuit.words().constants.len() * GROUP],
        }
    }

    /// Garbles a group: fills its tables and the packed masks of its outputs.
    pub(super) fn garble(
        &mut self,
        circuit: &Circuit,
        keys: &KeySchedule,
        group: u64,
        labels: GroupLabels<'_>,
        delta: Block,
        tables: &mut [u8],
        packed: &mut [u8],
    ) {
        let delta = [delta.0 as u64, (delta.0 >> 64) as u64];
        if labels.width <= NARROW / 2 {
            let space = self.narrow.get_or_insert_with(|| Space::new(self.slots));
            garble(space, &mut self.sums, circuit, keys, group, labels, delta, tables);
        } else {
            let space = self.full.get_or_insert_with(|| Space::new(self.slots));
            garble(space, &mut self.sums, circuit, keys, group, labels, delta, tables);
        }
        pack(&self.sums, circuit.words().modulus.bits(), labels.width, packed);
    }

    /// Evaluates a group: fills its packed masked outputs.
    pub(super) fn evaluate(
        &mut self,
        circuit: &Circuit,
        keys: &KeySchedule,
        group: u64,
        labels: GroupLabels<'_>,
        tables: &[u8],
        packed: &mut [u8],
    ) {
        if labels.width <= NARROW / 2 {
            let space = self.narrow.get_or_insert_with(|| Space::new(self.slots));
            evaluate(space, &mut self.sums, circuit, keys, group, labels, tables);
        } else {
            let space = self.full.get_or_insert_with(|| Space::new(self.slots));
            evaluate(space, &mut self.sums, circuit, keys, group, labels, tables);
        }
        pack(&self.sums, circuit.words().modulus.bits(), labels.width, packed);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.sums.zeroize();
    }
}

/// Slots and the buffers of one AND gate.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Space<const N: usize> {
    slots: Vec<Slot<N>>,
    gate: Buffers<N>,
}

/// The labels of one wire, at a cache line's start.
#[derive(Clone, Copy, Zeroize)]
#[repr(align(64))]
struct Slot<const N: usize>(Lanes<N>);

impl<const N: usize> Space<N> {
    fn new(slots: usize) -> Box<Self> {
        let zero = [0; N];
        Box::new(Self {
            slots: vec![Slot(zero); slots],
            gate: Buffers {
                delta: zero,
                step: zero,
                x: zero,
                y: zero,
                masks: [zero; 2],
                input: [zero; 4],
                image: [zero; 4],
                table: [zero; 2],
                words: zero,
            },
        })
    }
}

/// One AND gate in all instances. `H = input ^ image` with `image = AES(input)`. Fields are whole cache lines.
#[derive(Zeroize)]
#[repr(C, align(64))]
struct Buffers<const N: usize> {
    delta: Lanes<N>,
    /// `sigma(delta)`: the inputs of a label and of its partner differ by this.
    step: Lanes<N>,
    x: Lanes<N>,
    y: Lanes<N>,
    /// All ones where bit 0 of `x`, `y` is set.
    masks: [Lanes<N>; 2],
    /// Up to four hashes an instance.
    input: [Lanes<N>; 4],
    image: [Lanes<N>; 4],
    /// Generator half, evaluator half.
    table: [Lanes<N>; 2],
    /// A projection's ciphertexts, one word an instance in the first half.
    words: Lanes<N>,
}

fn garble<const N: usize>(
    space: &mut Space<N>,
    sums: &mut [u64],
    circuit: &Circuit,
    keys: &KeySchedule,
    group: u64,
    labels: GroupLabels<'_>,
    delta: [u64; 2],
    tables: &mut [u8],
) {
    // What the evaluator will sum is the words plus these.
    for (sums, &constant) in sums.chunks_exact_mut(GROUP).zip(&circuit.words().constants) {
        sums.fill(circuit.words().modulus.sub(0, constant));
    }
    let mut tables = tables;
    for (s, range) in circuit.segments().iter().enumerate() {
        keys.cipher(group, s as u32).encrypt_with_backend(GarbleSegment {
            gates: &circuit.gates()[range.clone()],
            words: circuit.words(),
            space,
            sums,
            labels,
            garbler_inputs: circuit.garbler_inputs(),
            delta,
            tables: &mut tables,
        });
    }
}

fn evaluate<const N: usize>(
    space: &mut Space<N>,
    sums: &mut [u64],
    circuit: &Circuit,
    keys: &KeySchedule,
    group: u64,
    labels: GroupLabels<'_>,
    tables: &[u8],
) {
    sums.fill(0);
    let mut tables = tables;
    for (s, range) in circuit.segments().iter().enumerate() {
        keys.cipher(group, s as u32).encrypt_with_backend(EvaluateSegment {
            gates: &circuit.gates()[range.clone()],
            words: circuit.words(),
            space,
            sums,
            labels,
            garbler_inputs: circuit.garbler_inputs(),
            tables: &mut tables,
        });
    }
}

struct GarbleSegment<'a, 'b, const N: usize> {
    gates: &'a [Gate],
    words: &'a Words,
    space: &'a mut Space<N>,
    sums: &'a mut [u64],
    labels: GroupLabels<'a>,
    garbler_inputs: usize,
    delta: [u64; 2],
    /// What is left of the group's tables.
    tables: &'a mut &'b mut [u8],
}

impl<const N: usize> BlockSizeUser for GarbleSegment<'_, '_, N> {
    type BlockSize = U16;
}

impl<const N: usize> BlockCipherEncClosure for GarbleSegment<'_, '_, N> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Space { slots, gate: g } = self.space;
        let half = self.labels.width * BLOCK_BYTES;
        for pair in g.delta.chunks_exact_mut(2).zip(g.step.chunks_exact_mut(2)) {
            pair.0.copy_from_slice(&self.delta);
            pair.1.copy_from_slice(&[self.delta[1], self.delta[0] ^ self.delta[1]]);
        }
        let mut gate_index = 0;
        for gate in self.gates {
            match *gate {
                Gate::Load { out, input } => load(&mut slots[out as usize].0, self.labels, self.garbler_inputs, input),
                Gate::Xor { out, a, b } => xor(slots, out, a, b),
                Gate::And { out, a, b, invert_a, invert_b } => {
                    // Which gates negate is public.
                    let (ma, mb) = (u64::from(invert_a).wrapping_neg(), u64::from(invert_b).wrapping_neg());
                    add_masked(&slots[a as usize].0, &g.delta, ma, &mut g.x);
                    add_masked(&slots[b as usize].0, &g.delta, mb, &mut g.y);
                    let [x0, x1, y0, y1] = &mut g.input;
                    sigma(&g.x, gate_tweak(gate_index, 0), x0);
                    sigma(&g.y, gate_tweak(gate_index, 1), y0);
                    add_masked(x0, &g.step, u64::MAX, x1);
                    add_masked(y0, &g.step, u64::MAX, y1);
                    gate_index += 1;
                    select_masks(&g.x, &mut g.masks[0]);
                    select_masks(&g.y, &mut g.masks[1]);
                    let masks = opaque(&g.masks);
                    encrypt(backend, g.input.as_flattened(), g.image.as_flattened_mut());
                    combine_garbled(
                        &g.x,
                        &g.delta,
                        masks,
                        &g.input,
                        &g.image,
                        &mut slots[out as usize].0,
                        &mut g.table,
                    );
                    write_lanes(&g.table[0], self.tables.split_off_mut(..half).unwrap_or_default());
                    write_lanes(&g.table[1], self.tables.split_off_mut(..half).unwrap_or_default());
                }
                Gate::Project { term, a } => {
                    let term = self.words.terms[term as usize];
                    g.x = slots[a as usize].0;
                    let [x0, x1, ..] = &mut g.input;
                    sigma(&g.x, gate_tweak(gate_index, 0), x0);
                    add_masked(x0, &g.step, u64::MAX, x1);
                    gate_index += 1;
                    select_masks(&g.x, &mut g.masks[0]);
                    let masks = opaque(&g.masks[0]);
                    encrypt(backend, g.input[..2].as_flattened(), g.image[..2].as_flattened_mut());
                    let sums = &mut self.sums[term.word as usize * GROUP..][..N / 2];
                    match self.words.modulus {
                        ShareModulus::PowerOfTwo(_) => {
                            project_garbled(term, masks, &g.input, &g.image, sums, &mut g.words);
                        }
                        ShareModulus::Prime(p) => {
                            project_garbled_prime(p, term, masks, &g.input, &g.image, sums, &mut g.words);
                        }
                    }
                    let bytes = self.labels.width * term.bytes as usize;
                    write_words(&g.words, term.bytes, self.tables.split_off_mut(..bytes).unwrap_or_default());
                }
            }
        }
    }
}

struct EvaluateSegment<'a, 'b, const N: usize> {
    gates: &'a [Gate],
    words: &'a Words,
    space: &'a mut Space<N>,
    sums: &'a mut [u64],
    labels: GroupLabels<'a>,
    garbler_inputs: usize,
    /// What is left of the group's tables.
    tables: &'a mut &'b [u8],
}

impl<const N: usize> BlockSizeUser for EvaluateSegment<'_, '_, N> {
    type BlockSize = U16;
}

impl<const N: usize> BlockCipherEncClosure for EvaluateSegment<'_, '_, N> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Space { slots, gate: g } = self.space;
        let half = self.labels.width * BLOCK_BYTES;
        let mut gate_index = 0;
        for gate in self.gates {
            match *gate {
                Gate::Load { out, input } => load(&mut slots[out as usize].0, self.labels, self.garbler_inputs, input),
                Gate::Xor { out, a, b } => xor(slots, out, a, b),
                // The garbler's zero labels carry negations: the evaluator does not see them.
                Gate::And { out, a, b, .. } => {
                    let (x, y) = (&slots[a as usize].0, &slots[b as usize].0);
                    read_lanes(&mut g.table[0], self.tables.split_off(..half).unwrap_or_default());
                    read_lanes(&mut g.table[1], self.tables.split_off(..half).unwrap_or_default());
                    sigma(x, gate_tweak(gate_index, 0), &mut g.input[0]);
                    sigma(y, gate_tweak(gate_index, 1), &mut g.input[1]);
                    gate_index += 1;
                    select_masks(x, &mut g.masks[0]);
                    select_masks(y, &mut g.masks[1]);
                    let masks = opaque(&g.masks);
                    g.x = *x;
                    encrypt(backend, g.input[..2].as_flattened(), g.image[..2].as_flattened_mut());
                    combine_evaluated(&g.x, masks, &g.input, &g.image, &g.table, &mut slots[out as usize].0);
                }
                Gate::Project { term, a } => {
                    let term = self.words.terms[term as usize];
                    let bytes = self.labels.width * term.bytes as usize;
                    read_words(&mut g.words, term.bytes, self.tables.split_off(..bytes).unwrap_or_default());
                    let x = &slots[a as usize].0;
                    sigma(x, gate_tweak(gate_index, 0), &mut g.input[0]);
                    gate_index += 1;
                    select_masks(x, &mut g.masks[0]);
                    let masks = opaque(&g.masks[0]);
                    encrypt(backend, g.input[..1].as_flattened(), g.image[..1].as_flattened_mut());
                    let sums = &mut self.sums[term.word as usize * GROUP..][..N / 2];
                    match self.words.modulus {
                        ShareModulus::PowerOfTwo(_) => {
                            project_evaluated(term, masks, &g.input[0], &g.image[0], &g.words, sums);
                        }
                        ShareModulus::Prime(p) => {
                            project_evaluated_prime(p, masks, &g.input[0], &g.image[0], &g.words, sums);
                        }
                    }
                }
            }
        }
    }
}

/// One input of every instance into a slot.
#[inline(always)]
fn load<const N: usize>(slot: &mut Lanes<N>, labels: GroupLabels<'_>, garbler_inputs: usize, input: u32) {
    let input = input as usize;
    let (from, index) =
        if input < garbler_inputs { (labels.garbler, input) } else { (labels.evaluator, input - garbler_inputs) };
    let stride = from.len() / labels.width.max(1);
    for (i, instance) in from.chunks_exact(stride.max(1)).take(N / 2).enumerate() {
        slot[2 * i] = instance[2 * index];
        slot[2 * i + 1] = instance[2 * index + 1];
    }
}

/// By pieces of a vector register, each read before it is written, because slots may coincide.
#[inline(always)]
fn xor<const N: usize>(slots: &mut [Slot<N>], out: u32, a: u32, b: u32) {
    let (out, a, b) = (out as usize, a as usize, b as usize);
    for k in (0..N).step_by(8) {
        let mut piece = [0; 8];
        for i in 0..8 {
            piece[i] = slots[a].0[k + i] ^ slots[b].0[k + i];
        }
        slots[out].0[k..k + 8].copy_from_slice(&piece);
    }
}

/// `sigma(x) ^ tweak ^ instance`, the input of the hash's block cipher; `sigma(hi || lo) = (hi ^ lo) || hi`.
#[inline(always)]
fn sigma<const N: usize>(x: &Lanes<N>, tweak: u64, out: &mut Lanes<N>) {
    for i in 0..N / 2 {
        let (lo, hi) = (x[2 * i], x[2 * i + 1]);
        out[2 * i] = hi ^ tweak ^ i as u64;
        out[2 * i + 1] = hi ^ lo;
    }
}

/// All ones in both words of the labels whose bit 0 is set, else 0.
#[inline(always)]
fn select_masks<const N: usize>(x: &Lanes<N>, masks: &mut Lanes<N>) {
    for i in 0..N / 2 {
        let mask = (x[2 * i] & 1).wrapping_neg();
        masks[2 * i] = mask;
        masks[2 * i + 1] = mask;
    }
}

/// Hides from the compiler that masks are all ones or 0, so that it cannot turn a selection into a branch.
#[inline(always)]
fn opaque<T>(masks: &T) -> &T {
    std::hint::black_box(masks)
}

/// `x ^ (d & mask)`.
#[inline(always)]
fn add_masked<const N: usize>(x: &Lanes<N>, d: &Lanes<N>, mask: u64, out: &mut Lanes<N>) {
    for j in 0..N {
        out[j] = x[j] ^ (d[j] & mask);
    }
}

/// The gate's table and zero labels from the hashes of x, its partner, y, its partner.
// A function of its own: only so does the compiler know that nothing overlaps.
#[inline(always)]
fn combine_garbled<const N: usize>(
    x: &Lanes<N>,
    delta: &Lanes<N>,
    masks: &[Lanes<N>; 2],
    input: &[Lanes<N>; 4],
    image: &[Lanes<N>; 4],
    out: &mut Lanes<N>,
    table: &mut [Lanes<N>; 2],
) {
    for j in 0..N {
        let (hx, hy) = (input[0][j] ^ image[0][j], input[2][j] ^ image[2][j]);
        let generator = hx ^ input[1][j] ^ image[1][j] ^ (masks[1][j] & delta[j]);
        let evaluator = hy ^ input[3][j] ^ image[3][j];
        out[j] = hx ^ hy ^ (masks[0][j] & generator) ^ (masks[1][j] & evaluator);
        table[0][j] = generator;
        table[1][j] = evaluator ^ x[j];
    }
}

/// The gate's labels from the hashes of x and y.
#[inline(always)]
fn combine_evaluated<const N: usize>(
    x: &Lanes<N>,
    masks: &[Lanes<N>; 2],
    input: &[Lanes<N>; 4],
    image: &[Lanes<N>; 4],
    table: &[Lanes<N>; 2],
    out: &mut Lanes<N>,
) {
    for j in 0..N {
        let hashes = input[0][j] ^ image[0][j] ^ input[1][j] ^ image[1][j];
        out[j] = hashes ^ (masks[0][j] & table[0][j]) ^ (masks[1][j] & (table[1][j] ^ x[j]));
    }
}

/// A projection: `sums` lose the masks `r` under which the bit will be summed, `words` become the ciphertexts.
///
/// With keys `k0`, `k1` of the labels of colour 0 and 1 and permute bit `p`, `r = k0 - p * unit`, so that the value under
/// colour 0 is `k0` and needs no ciphertext; the one under colour 1, `r + (1 - p) * unit`, is sent less `k1`.
#[inline(always)]
fn project_garbled<const N: usize>(
    term: Term,
    masks: &Lanes<N>,
    input: &[Lanes<N>; 4],
    image: &[Lanes<N>; 4],
    sums: &mut [u64],
    words: &mut Lanes<N>,
) {
    for (i, sum) in sums.iter_mut().enumerate().take(N / 2) {
        let (h0, h1) = (input[0][2 * i] ^ image[0][2 * i], input[1][2 * i] ^ image[1][2 * i]);
        let p = masks[2 * i];
        let k0 = h0 ^ (p & (h0 ^ h1));
        let k1 = h0 ^ h1 ^ k0;
        let r = k0.wrapping_sub(p & term.unit);
        words[i] = r.wrapping_add(!p & term.unit).wrapping_sub(k1);
        *sum = sum.wrapping_add(r << term.shift);
    }
}

/// Adds the value under the label at hand.
#[inline(always)]
fn project_evaluated<const N: usize>(
    term: Term,
    masks: &Lanes<N>,
    input: &Lanes<N>,
    image: &Lanes<N>,
    words: &Lanes<N>,
    sums: &mut [u64],
) {
    for (i, sum) in sums.iter_mut().enumerate().take(N / 2) {
        let value = (input[2 * i] ^ image[2 * i]).wrapping_add(masks[2 * i] & words[i]);
        *sum = sum.wrapping_add(value << term.shift);
    }
}

/// A hash modulo `p`, below `2^62`: of 128 bits, so that the residue is uniform within `2^-66`.
#[inline(always)]
pub(super) fn residue(p: PrimeModulus, low: u64, high: u64) -> u64 {
    let two_to_64 = p.add(p.reduce(u64::MAX), 1);
    p.add(p.mul(p.reduce(high), two_to_64), p.reduce(low))
}

/// As [`project_garbled`], modulo a prime.
#[inline(always)]
fn project_garbled_prime<const N: usize>(
    p: PrimeModulus,
    term: Term,
    masks: &Lanes<N>,
    input: &[Lanes<N>; 4],
    image: &[Lanes<N>; 4],
    sums: &mut [u64],
    words: &mut Lanes<N>,
) {
    for (i, sum) in sums.iter_mut().enumerate().take(N / 2) {
        let key = |h: usize| residue(p, input[h][2 * i] ^ image[h][2 * i], input[h][2 * i + 1] ^ image[h][2 * i + 1]);
        let (h0, h1, permute) = (key(0), key(1), masks[2 * i]);
        let k0 = h0 ^ (permute & (h0 ^ h1));
        let k1 = h0 ^ h1 ^ k0;
        let r = p.sub(k0, permute & term.unit);
        words[i] = p.sub(p.add(r, !permute & term.unit), k1);
        *sum = p.add(*sum, r);
    }
}

/// As [`project_evaluated`], modulo a prime. What the garbler sent may be any word.
#[inline(always)]
fn project_evaluated_prime<const N: usize>(
    p: PrimeModulus,
    masks: &Lanes<N>,
    input: &Lanes<N>,
    image: &Lanes<N>,
    words: &Lanes<N>,
    sums: &mut [u64],
) {
    for (i, sum) in sums.iter_mut().enumerate().take(N / 2) {
        let key = residue(p, input[2 * i] ^ image[2 * i], input[2 * i + 1] ^ image[2 * i + 1]);
        let value = p.add(key, p.reduce(masks[2 * i] & words[i]));
        *sum = p.add(*sum, value);
    }
}

#[inline(always)]
fn encrypt<B: BlockCipherEncBackend<BlockSize = U16>>(backend: &B, input: &[u64], image: &mut [u64]) {
    let (input, _) = AesBlock::slice_as_chunks(bytemuck::cast_slice(input));
    let (image, _) = AesBlock::slice_as_chunks_mut(bytemuck::cast_slice_mut(image));
    let (wide, tail) = ParBlocks::<B>::slice_as_chunks(input);
    let (wide_image, tail_image) = ParBlocks::<B>::slice_as_chunks_mut(image);
    for (x, y) in wide.iter().zip(wide_image) {
        backend.encrypt_par_blocks(InOut::from((x, y)));
    }
    for (x, y) in tail.iter().zip(tail_image) {
        backend.encrypt_block(InOut::from((x, y)));
    }
}

/// The first lanes, as many as `bytes` takes, by pieces whose length the compiler knows.
#[inline(always)]
fn write_lanes<const N: usize>(lanes: &Lanes<N>, bytes: &mut [u8]) {
    let (pieces, rest) = bytes.as_chunks_mut::<PIECE_BYTES>();
    let (lanes, _) = bytemuck::cast_slice::<u64, u8>(lanes).as_chunks::<PIECE_BYTES>();
    let count = pieces.len();
    for (to, from) in pieces.iter_mut().zip(lanes) {
        *to = *from;
    }
    if let Some(from) = lanes.get(count) {
        rest.copy_from_slice(&from[..rest.len()]);
    }
}

/// The reverse.
#[inline(always)]
fn read_lanes<const N: usize>(lanes: &mut Lanes<N>, bytes: &[u8]) {
    let (pieces, rest) = bytes.as_chunks::<PIECE_BYTES>();
    let (lanes, _) = bytemuck::cast_slice_mut::<u64, u8>(lanes).as_chunks_mut::<PIECE_BYTES>();
    for (to, from) in lanes.iter_mut().zip(pieces) {
        *to = *from;
    }
    if let Some(to) = lanes.get_mut(pieces.len()) {
        to[..rest.len()].copy_from_slice(rest);
    }
}

/// The low `bytes` bytes of each word, as many words as `out` takes.
#[inline(always)]
fn write_words(words: &[u64], bytes: u32, out: &mut [u8]) {
    fn each<const B: usize>(words: &[u64], out: &mut [u8]) {
        for (to, x) in out.as_chunks_mut::<B>().0.iter_mut().zip(words) {
            to.copy_from_slice(&x.to_le_bytes()[..B]);
        }
    }
    match bytes {
        1 => each::<1>(words, out),
        2 => each::<2>(words, out),
        3 => each::<3>(words, out),
        4 => each::<4>(words, out),
        5 => each::<5>(words, out),
        6 => each::<6>(words, out),
        7 => each::<7>(words, out),
        _ => each::<8>(words, out),
    }
}

/// The reverse.
#[inline(always)]
fn read_words(words: &mut [u64], bytes: u32, from: &[u8]) {
    fn each<const B: usize>(words: &mut [u64], from: &[u8]) {
        for (x, from) in words.iter_mut().zip(from.as_chunks::<B>().0) {
            let mut word = [0; 8];
            word[..B].copy_from_slice(from);
            *x = u64::from_le_bytes(word);
        }
    }
    match bytes {
        1 => each::<1>(words, from),
        2 => each::<2>(words, from),
        3 => each::<3>(words, from),
        4 => each::<4>(words, from),
        5 => each::<5>(words, from),
        6 => each::<6>(words, from),
        7 => each::<7>(words, from),
        _ => each::<8>(words, from),
    }
}

/// The low `bits` bits of the words of every instance, in the order `[instance][word]`.
fn pack(sums: &[u64], bits: u32, width: usize, packed: &mut [u8]) {
    let mask = u64::MAX >> (64 - bits);
    let mut bytes = packed.iter_mut();
    let (mut word, mut fill) = (0u128, 0);
    for instance in 0..width {
        for sums in sums.chunks_exact(GROUP) {
            word |= u128::from(sums[instance] & mask) << fill;
            fill += bits;
            while fill >= 8 {
                if let Some(slot) = bytes.next() {
                    *slot = word as u8;
                }
                word >>= 8;
                fill -= 8;
            }
        }
    }
    if let Some(slot) = bytes.next() {
        *slot = word as u8;
    }
}
