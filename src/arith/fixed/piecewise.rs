//! Functions by few pieces: a dyadic tree whose leaves are constants or short lines.
//!
//! A function on `[0, 2^bits)` is cut into dyadic cells (`[k 2^m, (k+1) 2^m)`), each as large as a stated error allows. In
//! a cell the function is a constant, plus a slope that is a short sum of powers of two times the leading bits of the
//! position in the cell. In a garbled circuit that costs one AND gate a cell but one (the walk down the tree), and one for
//! each bit that is multiplied by a power of two, however many cells share it; constants and weights are free. The error
//! is then put where it saves most, which uniform tables cannot: GELU within 0.006 takes a quarter of the gates.
//!
//! The pieces are found by a search that uses nothing but correctly rounded arithmetic and `libm`: both parties of a
//! protocol find the same ones.

/// Most levels of the tree.
const MAX_DEPTH: u32 = 10;

/// A cell: `[start, start + 2^log2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// First position.
    pub start: u64,
    /// `log2` of the width.
    pub log2: u32,
    /// The constant.
    pub base: i64,
    /// Bit `c` says that class `c` takes part.
    pub classes: u32,
    /// Whether the slope is negative: then the complement of the position in the cell is multiplied.
    pub falling: bool,
}

/// A slope of `2^exponent` output units a position, on the bits `cut ..` of the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// `log2` of the slope; `cut + exponent` is not negative.
    pub exponent: i32,
    /// First bit that is multiplied.
    pub cut: u32,
    /// One above the last bit that is multiplied in any leaf.
    pub top: u32,
}

/// A function on the integers of `[0, 2^bits)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piecewise {
    bits: u32,
    classes: Vec<Class>,
    leaves: Vec<Leaf>,
}

/// What a fit is asked for.
pub struct Fit<'a> {
    /// `log2` of the number of positions.
    pub bits: u32,
    /// Least admissible value at a real position.
    pub low: &'a dyn Fn(f64) -> f64,
    /// Largest admissible value.
    pub high: &'a dyn Fn(f64) -> f64,
    /// Whether position `i` stands for all of `[i, i + 1)`, and not for `i` itself.
    pub truncated: bool,
    /// Constants are multiples of `2^grid`.
    pub grid: u32,
    /// `log2` of the steepest slope that is tried (output units a position), and how many powers of two from there down.
    pub slopes: (i32, u32),
    /// AND gates that a class costs beside those of its bits.
    pub class_cost: usize,
}

/// A class as the search tries it: off, or bits `cut .. cap` in leaves of at most `2^cap` positions.
type Choice = Option<(u32, u32)>;

/// A tree's cost and leaves.
type Tree = (usize, Vec<Leaf>);

impl Fit<'_> {
    /// The cheapest pieces that the search finds. Cells of the lowest level get their middle value if nothing is
    /// admissible there.
    pub fn run(&self) -> Piecewise {
        let search = Search::new(self);
        let off = vec![None; self.slopes.1 as usize];
        let (mut choice, mut best) = (off.clone(), search.cost(&off));
        // One class after another until nothing improves; a class is tried with every cut and every largest cell.
        loop {
            let before = best.0;
            for class in 0..choice.len() {
                for option in search.options(class) {
                    let mut trial = choice.clone();
                    trial[class] = option;
                    let found = search.cost(&trial);
                    if found.0 < best.0 {
                        (choice, best) = (trial, found);
                    }
                }
            }
            if best.0 == before {
                break;
            }
        }
        self.finish(&choice, best.1)
    }

    fn exponent(&self, class: usize) -> i32 {
        self.slopes.0 - class as i32
    }

    /// Keeps the classes that are used.
    fn finish(&self, choice: &[Choice], mut leaves: Vec<Leaf>) -> Piecewise {
        let mut classes = Vec::new();
        let mut renumbered = vec![0; leaves.len()];
        for (c, cut) in choice.iter().enumerate().filter_map(|(c, o)| o.map(|(cut, _)| (c, cut))) {
            let using = |l: &Leaf| l.classes >> c & 1 == 1;
            let Some(top) = leaves.iter().filter(|l| using(l)).map(|l| l.log2).max() else { continue };
            for (new, leaf) in renumbered.iter_mut().zip(&leaves) {
                *new |= u32::from(using(leaf)) << classes.len();
            }
            classes.push(Class { exponent: self.exponent(c), cut, top });
        }
        leaves.iter_mut().zip(renumbered).for_each(|(leaf, classes)| leaf.classes = classes);
        Piecewise { bits: self.bits, classes, leaves }
    }
}

/// Per node of the full tree and slope, the bounds of a base.
struct Search<'a> {
    fit: &'a Fit<'a>,
    depth: u32,
    /// Slopes `-most ..= most` in units of the smallest class.
    most: i64,
    /// `bounds[level][cell][slope + most]`: the least and the largest constant of `value - slope * position`.
    bounds: Vec<Vec<Vec<[f64; 2]>>>,
    /// Largest room between the bounds of a value: what cuts may lose at most.
    room: f64,
}

impl<'a> Search<'a> {
    fn new(fit: &'a Fit<'a>) -> Self {
        let depth = fit.bits.min(MAX_DEPTH);
        let most = (1i64 << fit.slopes.1) - 1;
        let width = libm::exp2((fit.bits - depth) as f64);
        let unit = libm::exp2((fit.slopes.0 + 1 - fit.slopes.1 as i32) as f64);
        let at = |x: f64| -> Vec<[f64; 2]> {
            let (low, high) = ((fit.low)(x), (fit.high)(x));
            (-most..=most).map(|s| s as f64 * unit * x).map(|line| [low - line, high - line]).collect()
        };
        // Short of the next cell, where the function may jump.
        let last = width - if fit.truncated { libm::exp2(-10.0) } else { 1.0 };
        let finest = (0..1u64 << depth).map(|i| both(&at(i as f64 * width), &at(i as f64 * width + last))).collect();
        let mut bounds: Vec<Vec<Vec<[f64; 2]>>> = vec![finest];
        while let Some(level) = bounds.last().filter(|l| l.len() > 1) {
            bounds.push(level.chunks_exact(2).map(|pair| both(&pair[0], &pair[1])).collect());
        }
        bounds.reverse();
        let room = bounds[depth as usize].iter().map(|b| b[most as usize]).map(|[l, h]| h - l).fold(0.0, f64::max);
        Self { fit, depth, most, bounds, room }
    }

    /// Ways to use a class.
    fn options(&self, class: usize) -> Vec<Choice> {
        let exponent = self.fit.exponent(class);
        let mut options = vec![None];
        let cuts = ((-exponent).max(0) as u32..self.fit.bits)
            .filter(|&cut| libm::exp2(cut as f64 + exponent as f64) < self.room);
        for cut in cuts {
            let smallest = (cut + 1).max(self.fit.bits - self.depth);
            options.extend((smallest..self.fit.bits).map(|cap| Some((cut, cap))));
        }
        options
    }

    /// The cost in AND gates of the fewest leaves under these choices, and the leaves.
    fn cost(&self, choice: &[Choice]) -> Tree {
        let products: usize =
            choice.iter().flatten().map(|(cut, cap)| (cap - cut) as usize + self.fit.class_cost).sum();
        let mut leaves = Vec::new();
        self.visit(choice, 0, 0, &mut leaves);
        (leaves.len() + products, leaves)
    }

    /// A cell is split only if it cannot be a leaf: with the classes paid for, a leaf is never dearer than its parts.
    fn visit(&self, choice: &[Choice], level: u32, cell: usize, leaves: &mut Vec<Leaf>) {
        match self.leaf(choice, level, cell, level == self.depth) {
            Some(leaf) => leaves.push(leaf),
            None => {
                self.visit(choice, level + 1, 2 * cell, leaves);
                self.visit(choice, level + 1, 2 * cell + 1, leaves);
            }
        }
    }

    fn leaf(&self, choice: &[Choice], level: u32, cell: usize, forced: bool) -> Option<Leaf> {
        let fit = self.fit;
        let log2 = fit.bits - level;
        let start = (cell as u64) << log2;
        let step = libm::exp2(fit.grid as f64);
        let count = fit.slopes.1;
        let unit = libm::exp2((fit.slopes.0 + 1 - count as i32) as f64);
        let usable = choice.iter().enumerate().fold(0i64, |mask, (c, o)| {
            mask | i64::from(o.is_some_and(|(cut, cap)| cut < log2 && log2 <= cap)) << (count as usize - 1 - c)
        });
        let mut best: Option<(f64, Leaf)> = None;
        for slope in (-self.most..=self.most).filter(|s| s.abs() & !usable == 0) {
            let [least, largest] = self.bounds[level as usize][cell][(slope + self.most) as usize];
            // What the bits below the cuts lose.
            let slack: f64 = (choice.iter().enumerate())
                .filter(|(c, _)| slope.abs() >> (count as usize - 1 - c) & 1 == 1)
                .filter_map(|(c, o)| o.map(|(cut, _)| libm::exp2(cut as f64 + fit.exponent(c) as f64)))
                .sum();
            let line = slope as f64 * unit;
            // The constant at the cell's start; a falling line is measured from the cell's end.
            let (least, largest) = (least + line * start as f64, largest + line * start as f64);
            let (least, largest) = if slope < 0 {
                let drop = -line * libm::exp2(log2 as f64) - slack;
                (least - drop, largest - drop - slack)
            } else {
                (least + slack, largest)
            };
            let base = libm::round((least + largest) / 2.0 / step) * step;
            let room = (base - least).min(largest - base);
            if room < 0.0 && !(forced && slope == 0) {
                continue;
            }
            if best.as_ref().is_none_or(|b| room > b.0) {
                let classes = (0..count).filter(|c| slope.abs() >> (count - 1 - c) & 1 == 1).map(|c| 1 << c).sum();
                best = Some((room, Leaf { start, log2, base: base as i64, classes, falling: slope < 0 }));
            }
        }
        best.map(|b| b.1)
    }
}

/// What both sets of bounds allow.
fn both(a: &[[f64; 2]], b: &[[f64; 2]]) -> Vec<[f64; 2]> {
    a.iter().zip(b).map(|(a, b)| [a[0].max(b[0]), a[1].min(b[1])]).collect()
}

impl Piecewise {
    /// `log2` of the number of positions.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The slopes that leaves combine.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The cells in order; together they are all positions.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// The value at a position below `2^bits`.
    pub fn eval(&self, position: u64) -> i64 {
        let after = self.leaves.partition_point(|l| l.start <= position);
        let Some(leaf) = after.checked_sub(1).and_then(|i| self.leaves.get(i)) else { return 0 };
        let inside = (position - leaf.start) & ((1 << leaf.log2) - 1);
        let inside = if leaf.falling { (1 << leaf.log2) - 1 - inside } else { inside };
        let class = |(c, class): (usize, &Class)| {
            let on = i64::from(leaf.classes >> c & 1 == 1);
            on * (((inside >> class.cut) as i64) << (class.cut as i32 + class.exponent).max(0))
        };
        leaf.base + self.classes.iter().enumerate().map(class).sum::<i64>()
    }

    /// AND gates of the leaves and the products.
    pub fn cost(&self) -> usize {
        self.leaves.len() + self.classes.iter().map(|c| (c.top - c.cut) as usize).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parabola(bits: u32, error: f64, slopes: (i32, u32)) -> Piecewise {
        let scale = libm::exp2(-(bits as f64));
        let f = move |x: f64| 400.0 * (x * scale) * (1.0 - x * scale);
        Fit { bits, low: &|x| f(x) - error, high: &|x| f(x) + error, truncated: false, grid: 0, slopes, class_cost: 0 }
            .run()
    }

    #[test]
    fn fits_stay_within_their_error_and_cover_everything() {
        for (bits, error, slopes) in [(10, 3.0, (0, 0)), (14, 2.0, (-4, 4)), (20, 5.0, (-10, 4)), (8, 4.0, (1, 3))] {
            let p = parabola(bits, error, slopes);
            assert_eq!(p.leaves().iter().map(|l| 1u64 << l.log2).sum::<u64>(), 1 << bits);
            assert!(p.leaves().windows(2).all(|w| w[0].start + (1 << w[0].log2) == w[1].start));
            for x in (0..1u64 << bits).step_by(1 + (1 << bits) / 5000) {
                let t = x as f64 / libm::exp2(bits as f64);
                let real = 400.0 * t * (1.0 - t);
                assert!((p.eval(x) as f64 - real).abs() <= error + 1e-6, "{bits} bits at {x}: {} {real}", p.eval(x));
            }
        }
    }

    #[test]
    fn lines_save_gates_and_small_cells_stand_where_the_function_is_steep() {
        let (flat, lines) = (parabola(14, 2.0, (0, 0)), parabola(14, 2.0, (-4, 4)));
        assert!(lines.cost() < flat.cost() / 2, "{} and {}", lines.cost(), flat.cost());
        assert!(flat.leaves()[0].log2 < flat.leaves()[flat.leaves().len() / 2].log2);
    }

    #[test]
    fn positions_that_nothing_fits_get_the_middle() {
        let p = Fit {
            bits: 2,
            low: &|x| 10.0 * x,
            high: &|x| 10.0 * x,
            truncated: true,
            grid: 0,
            slopes: (0, 0),
            class_cost: 0,
        }
        .run();
        assert_eq!([0, 1, 2, 3].map(|x| p.eval(x)), [5, 15, 25, 35]);
    }
}
