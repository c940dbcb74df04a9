//! Key switches and batches of rotations: forward transform of the digits, inner product, inverse transform, mod-down.
//!
//! With at most two launches a transform that is six launches, for as many polynomials as kernels can see the digits of.
//! What they cannot see runs in parts: inputs by inputs, results by results, keys by keys; where one key or the digits of
//! one input are too much, digits by digits, which add up.

use std::ops::Range;

use super::{
    Rows,
    convert::{self, Added},
    part, parts,
    permute::inverse_mod_power_of_two,
    transform::{self, Input},
    whole, words32,
};
use crate::engine::{
    Buffer, KeySwitchShape, RnsRing, Rotation,
    backend::Result,
    gpu::{
        context::{Context, Launch, Slice},
        memory::Memory,
        shaders::{Transform, Variant},
        tables::{Conversion, Tables},
        transfer::CopyWords,
    },
};

/// Key switch of every polynomial of `x`.
pub(in crate::engine::gpu) fn key_switch(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    ring: &RnsRing,
    x: &wgpu::Buffer,
    shape: KeySwitchShape,
    key: &wgpu::Buffer,
) -> Result<Buffer> {
    let rotations: Vec<_> = (0..shape.polys).map(|input| Rotation { input, element: 1, key: 0 }).collect();
    Switch::new(context, operation, tables, ring, shape, key, false)?.run(x, &rotations)
}

/// A batch of rotations; every input that occurs is decomposed once.
pub(in crate::engine::gpu) fn rotate(
    context: &Context,
    operation: &'static str,
    tables: &Tables,
    ring: &RnsRing,
    x: &wgpu::Buffer,
    shape: KeySwitchShape,
    keys: &wgpu::Buffer,
    rotations: &[Rotation],
) -> Result<Buffer> {
    let switch = Switch::new(context, operation, tables, ring, shape, keys, true)?;
    let mut used: Vec<usize> = rotations.iter().map(|r| r.input).collect();
    used.sort_unstable();
    used.dedup();
    let Some((&first, &last)) = used.first().zip(used.last()) else { return switch.run(x, rotations) };
    if last - first + 1 == used.len() {
        return switch.run(x, rotations);
    }
    // Inputs that nothing rotates would be decomposed too.
    let words = switch.input_words();
    let compact = context.allocate(operation, used.len() * words)?;
    let copies: Vec<_> = (0..used.len())
        .map(|slot| CopyWords { from: Some((x, used[slot] * words)), to: slot * words, words })
        .collect();
    context.copy_all(operation, compact.buffer(), &copies)?;
    let slot_of = |input: usize| used.partition_point(|&other| other < input);
    let renamed: Vec<_> = rotations.iter().map(|r| Rotation { input: slot_of(r.input), ..*r }).collect();
    switch.run(compact.buffer(), &renamed)
}

/// What every part of an operation shares.
struct Switch<'a> {
    context: &'a Context,
    operation: &'static str,
    tables: &'a Tables,
    keys: &'a wgpu::Buffer,
    shape: KeySwitchShape,
    rows: Rows,
    key_digits: usize,
    /// Whether inputs are ciphertexts that are rotated, or single polynomials.
    rotate: bool,
    conversion: Option<Conversion>,
}

/// The inner products of a chunk of inputs.
struct Plan {
    /// Results a tile.
    tile: usize,
    /// The table of `key_switch.wgsl`.
    tiles: Vec<u32>,
    steps: Vec<Inner>,
}

/// One launch of the inner product.
struct Inner {
    /// Which part of the results.
    part: usize,
    digits: Range<usize>,
    /// Keys that the kernel sees.
    keys: Range<usize>,
    /// Entries of the table.
    tiles: Range<usize>,
}

impl<'a> Switch<'a> {
    fn new(
        context: &'a Context,
        operation: &'static str,
        tables: &'a Tables,
        ring: &RnsRing,
        shape: KeySwitchShape,
        keys: &'a wgpu::Buffer,
        rotate: bool,
    ) -> Result<Self> {
        let rows =
            Rows { count: shape.rows(), data: shape.limbs, skip: ring.moduli().len() - shape.special - shape.limbs };
        let conversion = (shape.digit_limbs > 1).then(|| Conversion {
            from: (0..shape.limbs)
                .step_by(shape.digit_limbs)
                .map(|first| first..shape.limbs.min(first + shape.digit_limbs))
                .collect(),
            width: shape.digit_limbs,
            to: shape.row_limbs(ring),
        });
        let key_digits = shape.key_digits(ring);
        Ok(Self { context, operation, tables, keys, shape, rows, key_digits, rotate, conversion })
    }

    /// Words of one input, `[limbs][N]` or `[2][limbs][N]`.
    fn input_words(&self) -> usize {
        (if self.rotate { 2 } else { 1 }) * self.shape.limbs * self.tables.n
    }

    /// Words of one digit, `[rows][N]`.
    fn digit_words(&self) -> usize {
        self.rows.count * self.tables.n
    }

    /// Words of one result, `[2][limbs][N]`.
    fn result_words(&self) -> usize {
        2 * self.shape.limbs * self.tables.n
    }

    /// Words of one digit of a key, `[2][all limbs][N]`.
    fn key_digit_words(&self) -> usize {
        2 * self.tables.count * self.tables.n
    }

    fn cut(&self, items: usize, words: usize) -> Result<Vec<Range<usize>>> {
        parts(self.context, self.operation, self.tables, items, words)
    }

    fn run(&self, x: &wgpu::Buffer, rotations: &[Rotation]) -> Result<Buffer> {
        let total = rotations.len() * self.result_words();
        if total == 0 {
            return Ok(self.context.wrap(0, None));
        }
        let out = self.context.allocate(self.operation, total)?;
        // All digits at once unless one key, or the digits of one input, are too much.
        let most = self.context.binding_words / self.digit_words().max(self.key_digit_words());
        let digits = self.cut(self.shape.digits(), self.digit_words().max(self.key_digit_words()))?;
        let together = self.shape.digits() <= most;
        let per_input = if together { self.shape.digits() } else { most } * self.digit_words();
        let digits = if together { std::iter::once(0..self.shape.digits()).collect() } else { digits };

        let inputs = rotations.iter().map(|r| r.input);
        let inputs = inputs.clone().min().unwrap_or(0)..inputs.max().map_or(0, |last| last + 1);
        for chunk in self.cut(inputs.len(), per_input.max(self.input_words()))? {
            let chunk = inputs.start + chunk.start..inputs.start + chunk.end;
            let indices: Vec<usize> = (0..rotations.len()).filter(|&r| chunk.contains(&rotations[r].input)).collect();
            let x = part(x, &chunk, self.input_words());
            self.chunk(x, &chunk, rotations, &indices, &digits, &out)?;
        }
        Ok(self.context.wrap(total, Some(out)))
    }

    /// The results `indices`, all of inputs in `chunk`.
    fn chunk(
        &self,
        x: Slice<'_>,
        chunk: &Range<usize>,
        rotations: &[Rotation],
        indices: &[usize],
        digits: &[Range<usize>],
        out: &Memory,
    ) -> Result<()> {
        let sum_words = 2 * self.digit_words();
        // Results are indexed from 0 in each of these.
        let subs: Vec<&[usize]> =
            self.cut(indices.len(), sum_words)?.into_iter().map(|range| &indices[range]).collect();
        let mut plan = Plan { tile: self.tile(rotations, indices), tiles: Vec::new(), steps: Vec::new() };
        for digits in digits {
            for sub in subs.iter().copied().enumerate() {
                self.plan(&mut plan, chunk, rotations, sub, digits)?;
            }
        }
        let rotation_words: Vec<u32> = indices
            .iter()
            .flat_map(|&r| {
                let Rotation { input, element, .. } = rotations[r];
                let inverse = inverse_mod_power_of_two(element as u32) & (2 * self.tables.n as u32 - 1);
                [(input - chunk.start) as u32, inverse]
            })
            .collect();

        // Everything that launches borrow, before they do.
        let allocate = |words| self.context.allocate(self.operation, words);
        let upload = |words: &[u32]| self.context.upload(self.operation, words);
        let most_digits = digits.iter().map(Range::len).max().unwrap_or(0);
        let decomposed = allocate(chunk.len() * most_digits * self.digit_words())?;
        let sums = subs.iter().map(|sub| allocate(sub.len() * sum_words)).collect::<Result<Vec<_>>>()?;
        let tile_memory = upload(&plan.tiles)?;
        let mut rotation_memory = Vec::new();
        let mut done = 0;
        for sub in &subs {
            rotation_memory.push(upload(&rotation_words[2 * done..2 * (done + sub.len())])?);
            done += sub.len();
        }
        let conversion = match &self.conversion {
            Some(conversion) => Some((
                self.tables.conversion(self.context, conversion.clone())?,
                conversion.from.len() * conversion.set_words(),
            )),
            None => None,
        };
        // Results of a part go where they belong if that is one place, else by way of a buffer.
        let contiguous = |sub: &[usize]| sub.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let staged = subs
            .iter()
            .map(|sub| (!contiguous(sub)).then(|| allocate(sub.len() * self.result_words())).transpose())
            .collect::<Result<Vec<_>>>()?;

        let mut launches = Vec::new();
        for range in digits {
            let words = chunk.len() * range.len() * self.digit_words();
            let (stride, first) = if self.rotate { (2, self.shape.limbs) } else { (1, 0) };
            let mut slices = vec![x];
            slices.extend(conversion.iter().map(|(memory, words)| whole(memory, *words)));
            let input = Input { slices, params: vec![range.len(), range.start, stride * self.shape.limbs, first] };
            let transform = Transform::ForwardDigits(self.shape.digit_limbs);
            let result = whole(&decomposed, words);
            launches.extend(transform::launches(self.context, self.tables, transform, input, result, self.rows));
            for inner in plan.steps.iter().filter(|inner| inner.digits == *range) {
                let sums = whole(&sums[inner.part], subs[inner.part].len() * sum_words);
                let table = whole(&tile_memory, plan.tiles.len());
                launches.push(self.inner_launch(plan.tile, range.start > 0, inner, result, sums, table));
            }
        }
        for (s, sub) in subs.iter().enumerate() {
            let sums = whole(&sums[s], sub.len() * sum_words);
            let (transform, input) = (Transform::Inverse, Input::in_place());
            launches.extend(transform::launches(self.context, self.tables, transform, input, sums, self.rows));
            let result = match &staged[s] {
                Some(staged) => whole(staged, sub.len() * self.result_words()),
                None => part(out.buffer(), &(sub[0]..sub[0] + sub.len()), self.result_words()),
            };
            let added =
                self.rotate.then(|| Added { ciphertexts: x, rotations: whole(&rotation_memory[s], 2 * sub.len()) });
            let polys = 2 * sub.len();
            launches.push(convert::drop_launch(self.tables, sums, result, polys, self.rows, self.rows.data, added));
        }
        self.context.run(self.operation, &launches)?;
        for (sub, staged) in subs.iter().zip(&staged) {
            let Some(staged) = staged else { continue };
            let words = self.result_words();
            let copies: Vec<_> = sub
                .iter()
                .enumerate()
                .map(|(i, &r)| CopyWords { from: Some((staged.buffer(), i * words)), to: r * words, words })
                .collect();
            self.context.copy_all(self.operation, out.buffer(), &copies)?;
        }
        Ok(())
    }

    /// Results a tile: more than one where keys serve several.
    fn tile(&self, rotations: &[Rotation], indices: &[usize]) -> usize {
        let mut keys: Vec<usize> = indices.iter().map(|&r| rotations[r].key).collect();
        keys.sort_unstable();
        keys.dedup();
        if indices.len() >= 2 * keys.len() { 4 } else { 1 }
    }

    /// Plans the inner products of the results `sub`, part `part` of a chunk, over `digits`: one step for as many keys as a
    /// kernel can see.
    fn plan(
        &self,
        plan: &mut Plan,
        chunk: &Range<usize>,
        rotations: &[Rotation],
        (part, sub): (usize, &[usize]),
        digits: &Range<usize>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..sub.len()).collect();
        order.sort_by_key(|&i| rotations[sub[i]].key);
        let key_of = |i: usize| rotations[sub[i]].key;
        // Digits from the first of one key to the last of another that fit, and whether all keys do.
        let most = self.context.binding_words / self.key_digit_words();
        let fits = |first: usize, key: usize| (key - first) * self.key_digits + digits.len() <= most;
        let all_fit = order.last().is_some_and(|&last| fits(0, key_of(last)));
        let entry = 1 + 3 * plan.tile;
        let mut rest = order.as_slice();
        while let Some(&first) = rest.first() {
            let first_key = if all_fit { 0 } else { key_of(first) };
            let (window, later) = rest.split_at(rest.partition_point(|&i| fits(first_key, key_of(i))));
            rest = later;
            let first_tile = plan.tiles.len() / entry;
            for group in window.chunk_by(|&a, &b| key_of(a) == key_of(b)) {
                for group in group.chunks(plan.tile) {
                    plan.tiles.push((key_of(group[0]) - first_key) as u32);
                    for k in 0..plan.tile {
                        let i = group[k.min(group.len() - 1)];
                        let Rotation { input, element, .. } = rotations[sub[i]];
                        plan.tiles.extend([(input - chunk.start) as u32, element as u32, i as u32]);
                    }
                }
            }
            if first_key + digits.start > 0 && !self.tables.n.is_multiple_of(self.context.align_words) {
                let what = format!("storage offsets of {} words", self.tables.n);
                return Err(self.context.unsupported(self.operation, what));
            }
            let last_key = window.last().map_or(first_key, |&i| key_of(i));
            plan.steps.push(Inner {
                part,
                digits: digits.clone(),
                keys: first_key..last_key + 1,
                tiles: first_tile..plan.tiles.len() / entry,
            });
        }
        Ok(())
    }

    fn inner_launch<'b>(
        &'b self,
        tile: usize,
        accumulate: bool,
        inner: &Inner,
        decomposed: Slice<'b>,
        sums: Slice<'b>,
        table: Slice<'b>,
    ) -> Launch<'b> {
        let rows = self.rows;
        let log_n = self.tables.log_n() as usize;
        let digits = inner.digits.len();
        let at = inner.keys.start * self.key_digits + inner.digits.start;
        let keys = Slice {
            buffer: self.keys,
            start: at * self.key_digit_words(),
            words: ((inner.keys.len() - 1) * self.key_digits + digits) * self.key_digit_words(),
        };
        let (all, tiles) = (self.tables.count, inner.tiles.len());
        Launch {
            variant: Variant::inner_product(tile as u32, accumulate),
            params: words32(&[
                log_n,
                rows.count,
                rows.data,
                rows.skip,
                all,
                digits,
                self.key_digits,
                tiles,
                inner.tiles.start,
            ]),
            slices: vec![self.tables.limb_slice(), decomposed, keys, sums, table],
            groups: Launch::groups_for(tiles * rows.count * self.tables.n),
        }
    }
}
