//! The inner loop of half-gates: one group of instances, one lane each, through the instructions of a circuit.
//!
//! The loop runs inside the AES implementation's vector code (a closure that the `aes` crate calls with CPU features
//! enabled), so that hashing and label arithmetic compile to the same wide instructions without any `unsafe` here.

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InOut, ParBlocks};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::circuit::{Circuit, Gate, SEGMENT_ANDS};
use super::half_gates::{GATE_BYTES, GROUP, KeySchedule, gate_tweak};
use crate::mpc::block::{BLOCK_BYTES, Block};

type AesBlock = Array<u8, U16>;

/// Labels of one wire in `N / 2` instances: low word, high word, low word, ...
type Lanes<const N: usize> = [u64; N];

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
    /// Bit `i` of word `o` is the colour or permute bit of output `o` in instance `i`.
    outputs: Vec<u32>,
}

impl Scratch {
    pub(super) fn new(circuit: &Circuit) -> Self {
        Self { slots: circuit.slots(), full: None, narrow: None, outputs: vec![0; circuit.outputs()] }
    }

    /// Garbles a group: fills its tables and packed permute bits.
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
            garble(space, &mut self.outputs, circuit, keys, group, labels, delta, tables);
        } else {
            let space = self.full.get_or_insert_with(|| Space::new(self.slots));
            garble(space, &mut self.outputs, circuit, keys, group, labels, delta, tables);
        }
        pack(&self.outputs, labels.width, packed);
    }

    /// Evaluates a group: fills its packed colour bits.
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
            evaluate(space, &mut self.outputs, circuit, keys, group, labels, tables);
        } else {
            let space = self.full.get_or_insert_with(|| Space::new(self.slots));
            evaluate(space, &mut self.outputs, circuit, keys, group, labels, tables);
        }
        pack(&self.outputs, labels.width, packed);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.outputs.zeroize();
    }
}

/// Slots and the buffers of one AND gate.
#[derive(Zeroize, ZeroizeOnDrop)]
struct Space<const N: usize> {
    slots: Vec<Lanes<N>>,
    hash: Hash<N>,
}

impl<const N: usize> Space<N> {
    fn new(slots: usize) -> Box<Self> {
        Box::new(Self { slots: vec![[0; N]; slots], hash: Hash { input: [[0; N]; 4], image: [[0; N]; 4] } })
    }
}

/// Up to four hashes an instance: `H = input ^ AES(input)`.
#[derive(Zeroize)]
struct Hash<const N: usize> {
    input: [Lanes<N>; 4],
    image: [Lanes<N>; 4],
}

fn garble<const N: usize>(
    space: &mut Space<N>,
    outputs: &mut [u32],
    circuit: &Circuit,
    keys: &KeySchedule,
    group: u64,
    labels: GroupLabels<'_>,
    delta: [u64; 2],
    tables: &mut [u8],
) {
    let segment_bytes = (SEGMENT_ANDS * GATE_BYTES * labels.width).max(1);
    let mut tables = tables.chunks_mut(segment_bytes);
    for (s, range) in circuit.segments().iter().enumerate() {
        keys.cipher(group, s as u32).encrypt_with_backend(GarbleSegment {
            gates: &circuit.gates()[range.clone()],
            space,
            outputs,
            labels,
            garbler_inputs: circuit.garbler_inputs(),
            delta,
            tables: tables.next().unwrap_or_default(),
        });
    }
}

fn evaluate<const N: usize>(
    space: &mut Space<N>,
    outputs: &mut [u32],
    circuit: &Circuit,
    keys: &KeySchedule,
    group: u64,
    labels: GroupLabels<'_>,
    tables: &[u8],
) {
    let segment_bytes = (SEGMENT_ANDS * GATE_BYTES * labels.width).max(1);
    let mut tables = tables.chunks(segment_bytes);
    for (s, range) in circuit.segments().iter().enumerate() {
        keys.cipher(group, s as u32).encrypt_with_backend(EvaluateSegment {
            gates: &circuit.gates()[range.clone()],
            space,
            outputs,
            labels,
            garbler_inputs: circuit.garbler_inputs(),
            tables: tables.next().unwrap_or_default(),
        });
    }
}

struct GarbleSegment<'a, const N: usize> {
    gates: &'a [Gate],
    space: &'a mut Space<N>,
    outputs: &'a mut [u32],
    labels: GroupLabels<'a>,
    garbler_inputs: usize,
    delta: [u64; 2],
    tables: &'a mut [u8],
}

impl<const N: usize> BlockSizeUser for GarbleSegment<'_, N> {
    type BlockSize = U16;
}

impl<const N: usize> BlockCipherEncClosure for GarbleSegment<'_, N> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Space { slots, hash } = self.space;
        let delta = self.delta;
        let half = self.labels.width * BLOCK_BYTES;
        let mut tables = self.tables.chunks_exact_mut((2 * half).max(1));
        let mut gate_index = 0;
        for gate in self.gates {
            match *gate {
                Gate::Load { out, input } => load(&mut slots[out as usize], self.labels, self.garbler_inputs, input),
                Gate::Xor { out, a, b } => xor(slots, out, a, b),
                Gate::And { out, a, b, invert_a, invert_b } => {
                    let (x, y) = (&slots[a as usize], &slots[b as usize]);
                    let dx = [delta[0] * u64::from(invert_a), delta[1] * u64::from(invert_a)];
                    let dy = [delta[0] * u64::from(invert_b), delta[1] * u64::from(invert_b)];
                    let [x0, x1, y0, y1] = &mut hash.input;
                    prepare(x, dx, gate_tweak(gate_index, 0), x0);
                    partner(x0, delta, x1);
                    prepare(y, dy, gate_tweak(gate_index, 1), y0);
                    partner(y0, delta, y1);
                    gate_index += 1;
                    encrypt(backend, hash.input.as_flattened(), hash.image.as_flattened_mut());
                    let h = |k: usize, i: usize| hash.input[k][i] ^ hash.image[k][i];
                    let (mut generator, mut evaluator, mut result) = ([0; N], [0; N], [0; N]);
                    for i in 0..N / 2 {
                        let px = ((x[2 * i] ^ dx[0]) & 1).wrapping_neg();
                        let py = ((y[2 * i] ^ dy[0]) & 1).wrapping_neg();
                        for w in 0..2 {
                            let j = 2 * i + w;
                            let x = x[j] ^ dx[w];
                            let tg = h(0, j) ^ h(1, j) ^ (py & delta[w]);
                            let te = h(2, j) ^ h(3, j) ^ x;
                            generator[j] = tg;
                            evaluator[j] = te;
                            result[j] = h(0, j) ^ (px & tg) ^ h(2, j) ^ (py & (te ^ x));
                        }
                    }
                    slots[out as usize] = result;
                    if let Some(table) = tables.next() {
                        let (first, second) = table.split_at_mut(half);
                        first.copy_from_slice(&bytemuck::cast_slice(&generator[..])[..half]);
                        second.copy_from_slice(&bytemuck::cast_slice(&evaluator[..])[..half]);
                    }
                }
                Gate::Output { index, a, invert } => {
                    self.outputs[index as usize] = colours(&slots[a as usize]) ^ u32::from(invert).wrapping_neg();
                }
            }
        }
    }
}

struct EvaluateSegment<'a, const N: usize> {
    gates: &'a [Gate],
    space: &'a mut Space<N>,
    outputs: &'a mut [u32],
    labels: GroupLabels<'a>,
    garbler_inputs: usize,
    tables: &'a [u8],
}

impl<const N: usize> BlockSizeUser for EvaluateSegment<'_, N> {
    type BlockSize = U16;
}

impl<const N: usize> BlockCipherEncClosure for EvaluateSegment<'_, N> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Space { slots, hash } = self.space;
        let half = self.labels.width * BLOCK_BYTES;
        let mut tables = self.tables.chunks_exact((2 * half).max(1));
        let mut gate_index = 0;
        for gate in self.gates {
            match *gate {
                Gate::Load { out, input } => load(&mut slots[out as usize], self.labels, self.garbler_inputs, input),
                Gate::Xor { out, a, b } => xor(slots, out, a, b),
                // The garbler's zero labels carry negations: the evaluator does not see them.
                Gate::And { out, a, b, .. } => {
                    let (x, y) = (&slots[a as usize], &slots[b as usize]);
                    let (mut generator, mut evaluator, mut result) = ([0; N], [0; N], [0; N]);
                    if let Some(table) = tables.next() {
                        let (first, second) = table.split_at(half);
                        bytemuck::cast_slice_mut(&mut generator[..])[..half].copy_from_slice(first);
                        bytemuck::cast_slice_mut(&mut evaluator[..])[..half].copy_from_slice(second);
                    }
                    let [hx, hy, ..] = &mut hash.input;
                    prepare(x, [0; 2], gate_tweak(gate_index, 0), hx);
                    prepare(y, [0; 2], gate_tweak(gate_index, 1), hy);
                    gate_index += 1;
                    encrypt(backend, hash.input[..2].as_flattened(), hash.image[..2].as_flattened_mut());
                    for i in 0..N / 2 {
                        let sx = (x[2 * i] & 1).wrapping_neg();
                        let sy = (y[2 * i] & 1).wrapping_neg();
                        for j in [2 * i, 2 * i + 1] {
                            result[j] = hash.input[0][j]
                                ^ hash.image[0][j]
                                ^ hash.input[1][j]
                                ^ hash.image[1][j]
                                ^ (sx & generator[j])
                                ^ (sy & (evaluator[j] ^ x[j]));
                        }
                    }
                    slots[out as usize] = result;
                }
                Gate::Output { index, a, .. } => self.outputs[index as usize] = colours(&slots[a as usize]),
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
    for (pair, instance) in slot.chunks_exact_mut(2).zip(from.chunks_exact(stride.max(1))) {
        pair.copy_from_slice(&instance[2 * index..2 * index + 2]);
    }
}

/// By pieces of a vector register, each read before it is written, because slots may coincide.
#[inline(always)]
fn xor<const N: usize>(slots: &mut [Lanes<N>], out: u32, a: u32, b: u32) {
    let (out, a, b) = (out as usize, a as usize, b as usize);
    for k in (0..N).step_by(8) {
        let mut piece = [0; 8];
        for i in 0..8 {
            piece[i] = slots[a][k + i] ^ slots[b][k + i];
        }
        slots[out][k..k + 8].copy_from_slice(&piece);
    }
}

/// `sigma(x ^ d) ^ tweak ^ instance`, the input of the hash's block cipher; `sigma(hi || lo) = (hi ^ lo) || hi`.
#[inline(always)]
fn prepare<const N: usize>(x: &Lanes<N>, d: [u64; 2], tweak: u64, out: &mut Lanes<N>) {
    for i in 0..N / 2 {
        let (lo, hi) = (x[2 * i] ^ d[0], x[2 * i + 1] ^ d[1]);
        out[2 * i] = hi ^ tweak ^ i as u64;
        out[2 * i + 1] = hi ^ lo;
    }
}

/// The same for the labels `x ^ delta`, by linearity.
#[inline(always)]
fn partner<const N: usize>(x: &Lanes<N>, delta: [u64; 2], out: &mut Lanes<N>) {
    for i in 0..N / 2 {
        out[2 * i] = x[2 * i] ^ delta[1];
        out[2 * i + 1] = x[2 * i + 1] ^ delta[0] ^ delta[1];
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

/// Bit 0 of every label.
#[inline(always)]
fn colours<const N: usize>(x: &Lanes<N>) -> u32 {
    (0..N / 2).fold(0, |acc, i| acc | ((x[2 * i] & 1) as u32) << i)
}

/// Words of instances (one an output) to packed bits in the order `[instance][output]`.
fn pack(outputs: &[u32], width: usize, packed: &mut [u8]) {
    let mut bytes = packed.iter_mut();
    let (mut byte, mut fill) = (0u8, 0);
    for instance in 0..width {
        for word in outputs {
            byte |= ((word >> instance & 1) as u8) << fill;
            fill += 1;
            if fill == 8 {
                if let Some(slot) = bytes.next() {
                    *slot = byte;
                }
                (byte, fill) = (0, 0);
            }
        }
    }
    if let Some(slot) = bytes.next() {
        *slot = byte;
    }
}
