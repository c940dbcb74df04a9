//! Turns of the slots, and the order in which a product takes them.

/// An automorphism of the slots: a rotation of both rows by `steps` to the left, and perhaps a swap of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub swap: bool,
    /// Below `N/2`.
    pub steps: usize,
}

impl Turn {
    /// None at all.
    pub const IDENTITY: Self = Self { swap: false, steps: 0 };

    /// Its Galois element: `+-3^steps mod 2N`.
    pub fn element(self, n: usize) -> usize {
        let mut power = 1;
        for _ in 0..self.steps {
            power = power * 3 % (2 * n);
        }
        if self.swap { 2 * n - power } else { power }
    }

    /// The slot whose content it brings to `slot`, and the way back for `inverse`.
    #[inline]
    pub fn source(self, n: usize, slot: usize, inverse: bool) -> usize {
        let half = n / 2;
        let row = slot & half ^ if self.swap { half } else { 0 };
        let j = if inverse { slot + half - self.steps } else { slot + self.steps };
        row | j & (half - 1)
    }
}

/// Rotations of one ciphertext that share its decomposition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hoist {
    /// Number of the turn that they start from.
    pub base: usize,
    /// Numbers of the turns that they give, each with the turn that leads there.
    pub turns: Vec<(usize, Turn)>,
}

/// Where a product swaps rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swap {
    Never,
    Baby,
    Giant,
}

impl Swap {
    /// Babies and giants of `count` row rotations, `babies` of which are babies.
    pub fn steps(self, count: usize, babies: usize) -> (usize, usize) {
        match self {
            Self::Never => (babies, count / babies),
            Self::Baby => (2 * babies, count / babies),
            Self::Giant => (babies, 2 * count / babies),
        }
    }
}

/// The turns of the input (babies), and those of partial sums (giants): every pair composes to another turn of the product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turns {
    /// Turn 0 is the identity.
    pub babies: Vec<Turn>,
    /// How the babies are made.
    pub hoists: Vec<Hoist>,
    /// Turn 0 is the identity.
    pub giants: Vec<Turn>,
}

/// Row rotations that one decomposition serves; each has a switching key, and a swap has as many again.
const HOIST: usize = 32;

/// The same where a product has thousands of rotations.
const LONG_HOIST: usize = 16;

impl Turns {
    /// Tokens first: the turns `(swap, s tokens)`, `s < count`; `swap` is both, or neither.
    pub fn plain(n: usize, tokens: usize, count: usize, swap: bool) -> Self {
        let mut turns = Self::empty();
        turns.chain(n, tokens, count, swap, HOIST);
        turns
    }

    /// The same as babies of `babies` row rotations, which divide `count`, and the giants that are left.
    pub fn baby_giant(n: usize, tokens: usize, count: usize, babies: usize, swap: Swap) -> Self {
        let mut turns = Self::empty();
        turns.chain(n, tokens, babies, swap == Swap::Baby, HOIST);
        let giant = |swap| (0..count / babies).map(move |g| Turn { swap, steps: g * babies * tokens });
        turns.giants = giant(false).collect();
        if swap == Swap::Giant {
            turns.giants.extend(giant(true));
        }
        turns
    }

    /// Features first: row rotations by `-(cols - 1) ..= inner - 1`, those that are the same in a row of `N/2` slots once.
    pub fn differences(n: usize, inner: usize, cols: usize) -> Self {
        let mut turns = Self::empty();
        let (inner, cols) = (inner.min(n / 2), cols.min(n / 2));
        turns.chain(n, 1, inner, false, LONG_HOIST);
        turns.chain(n, n / 2 - 1, cols.min(n / 2 - inner + 1), false, LONG_HOIST);
        turns
    }

    /// Turns of the product.
    pub fn count(&self) -> usize {
        self.babies.len() * self.giants.len()
    }

    /// Galois elements of all rotations, each once.
    pub fn elements(&self, n: usize) -> Vec<usize> {
        let relative = self.hoists.iter().flat_map(|hoist| hoist.turns.iter().map(|&(_, turn)| turn));
        let mut elements: Vec<usize> =
            relative.chain(self.giants[1..].iter().copied()).map(|turn| turn.element(n)).collect();
        elements.sort_unstable();
        elements.dedup();
        elements
    }

    /// Key switches between the input and the base of a hoist.
    pub fn depth(&self, hoist: &Hoist) -> usize {
        let made_by =
            |turn: usize| self.hoists.iter().find(|hoist| hoist.turns.iter().any(|&(number, _)| number == turn));
        let (mut depth, mut base) = (0, hoist.base);
        while let Some(before) = made_by(base) {
            (depth, base) = (depth + 1, before.base);
        }
        depth
    }

    fn empty() -> Self {
        Self { babies: vec![Turn::IDENTITY], hoists: Vec::new(), giants: vec![Turn::IDENTITY] }
    }

    /// Adds row rotations by `step, 2 step .. (count - 1) step`, and with `swap` the swaps of those and of the identity: from the
    /// identity in hoists of `length` row rotations, each from where the one before has ended.
    fn chain(&mut self, n: usize, step: usize, count: usize, swap: bool, length: usize) {
        let steps = |s: usize| s * step % (n / 2);
        let sides: &[bool] = if swap { &[false, true] } else { &[false] };
        let (mut base, mut first) = (0, 0);
        while first < count {
            let last = count.min(first + length);
            let mut hoist = Hoist { base, turns: Vec::new() };
            for s in first..count.min(last + 1) {
                for &swap in sides {
                    // The base is there, and the rotation to the next base comes alone.
                    if (s == first && !swap) || (s == last && swap) {
                        continue;
                    }
                    if s == last {
                        base = self.babies.len();
                    }
                    hoist.turns.push((self.babies.len(), Turn { swap, steps: steps(s - first) }));
                    self.babies.push(Turn { swap, steps: steps(s) });
                }
            }
            if !hoist.turns.is_empty() {
                self.hoists.push(hoist);
            }
            first = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// What a turn does to the numbers of the slots.
    fn apply(n: usize, turn: Turn, x: &[usize]) -> Vec<usize> {
        (0..n).map(|slot| x[turn.source(n, slot, false)]).collect()
    }

    #[test]
    fn hoists_give_the_turns_that_they_say() {
        let n = 256;
        for turns in [
            Turns::plain(n, 2, 64, true),
            Turns::plain(n, 1, 128, true),
            Turns::plain(n, 128, 1, true),
            Turns::plain(n, 4, 8, false),
            Turns::baby_giant(n, 2, 64, 8, Swap::Baby),
            Turns::baby_giant(n, 2, 64, 64, Swap::Giant),
            Turns::baby_giant(n, 4, 32, 1, Swap::Giant),
            Turns::baby_giant(n, 4, 16, 4, Swap::Never),
            Turns::differences(n, 20, 40),
            Turns::differences(n, 128, 128),
            Turns::differences(n, 1, 1),
        ] {
            let identity: Vec<usize> = (0..n).collect();
            let mut made: Vec<Option<Vec<usize>>> = vec![None; turns.babies.len()];
            made[0] = Some(identity.clone());
            for hoist in &turns.hoists {
                let base = made[hoist.base].clone().unwrap();
                for &(number, relative) in &hoist.turns {
                    assert!(made[number].is_none());
                    made[number] = Some(apply(n, relative, &base));
                }
            }
            let mut all = HashSet::new();
            for (turn, made) in turns.babies.iter().zip(&made) {
                let made = made.as_ref().unwrap();
                assert_eq!(*made, apply(n, *turn, &identity));
                for &giant in &turns.giants {
                    assert!(all.insert(apply(n, giant, made)));
                    let there: Vec<usize> =
                        (0..n).map(|slot| giant.source(n, giant.source(n, slot, true), false)).collect();
                    assert_eq!(there, identity);
                }
            }
            assert_eq!(all.len(), turns.count());
            assert!(turns.elements(n).len() <= turns.babies.len() + turns.giants.len() - 2);
        }
    }

    #[test]
    fn counts_of_turns() {
        // 128 tokens at N = 8192.
        let plain = Turns::plain(8192, 128, 32, true);
        assert_eq!((plain.babies.len(), plain.hoists.len(), plain.count()), (64, 1, 64));
        let steps = Turns::baby_giant(8192, 128, 32, 4, Swap::Baby);
        assert_eq!((steps.babies.len(), steps.giants.len(), steps.elements(8192).len()), (8, 8, 14));
        let first = Turns::differences(8192, 768, 768);
        assert_eq!((first.count(), first.giants.len(), first.elements(8192).len()), (1535, 1, 32));
        assert_eq!(Turns::differences(8192, 4096, 768).count(), 4096);
        assert_eq!(first.depth(&first.hoists[3]), 3);
        assert_eq!(Turn { swap: true, steps: 2 }.element(64), 128 - 9);
    }
}
