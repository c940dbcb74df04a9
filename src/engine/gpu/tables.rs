//! Constants of a ring on the device: limb constants, twiddles, inverses between moduli.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{context::Context, memory::Memory};
use crate::{
    arith::Modulus,
    engine::{RnsRing, backend::Result},
};

/// Rings whose tables are kept; the least recently used goes first.
const RINGS_KEPT: usize = 16;

/// The tables of one ring.
pub(super) struct Tables {
    /// `struct Limb` of `shaders/lib/modular.wgsl`, one a limb.
    pub limbs: Memory,
    /// `[limb][N]` of `(psi^brv(i), Shoup companion)`.
    pub forward: Memory,
    /// `[limb][N]` of `(psi^-brv(i), Shoup companion)`, entry 0 being 1/N and entry 1 multiplied by 1/N.
    pub inverse: Memory,
    /// `[from][to]` of `(p_from^-1 mod p_to, Shoup companion)`, zero on the diagonal.
    pub inverses: Memory,
    /// Number of limbs of the ring.
    pub count: usize,
    /// N.
    pub n: usize,
    moduli: Vec<Modulus>,
    conversions: Mutex<HashMap<Conversion, Arc<Memory>>>,
}

/// Which base conversions a table is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Conversion {
    /// The sets of limbs that are converted from.
    pub from: Vec<Range<usize>>,
    /// Limbs of the largest set.
    pub width: usize,
    /// The limbs that each is converted to.
    pub to: Vec<usize>,
}

/// Tables of conversions kept for one ring: a few levels of a few operations.
const CONVERSIONS_KEPT: usize = 64;

/// Words of one limb's constants.
pub(super) const LIMB_WORDS: usize = 8;

impl Tables {
    fn new(context: &Context, ring: &RnsRing) -> Result<Self> {
        let moduli = ring.moduli();
        let limbs: Vec<u32> = moduli.iter().flat_map(|&m| limb_words(m)).collect();
        let mut forward = Vec::with_capacity(2 * moduli.len() * ring.n());
        let mut inverse = Vec::with_capacity(2 * moduli.len() * ring.n());
        for (&m, &psi) in moduli.iter().zip(ring.psi()) {
            push_twiddles(&mut forward, m, psi, ring.log_n(), 1);
            push_twiddles(&mut inverse, m, m.inv(psi), ring.log_n(), m.inv(ring.n() as u32 % m.value()));
        }
        let mut inverses = Vec::with_capacity(2 * moduli.len() * moduli.len());
        for from in moduli {
            for &to in moduli {
                push_pair(&mut inverses, to, to.inv(from.value() % to.value()));
            }
        }
        let upload = |words: &[u32]| context.upload("tables of a ring", words);
        Ok(Self {
            limbs: upload(&limbs)?,
            forward: upload(&forward)?,
            inverse: upload(&inverse)?,
            inverses: upload(&inverses)?,
            count: moduli.len(),
            n: ring.n(),
            moduli: moduli.to_vec(),
            conversions: Mutex::default(),
        })
    }

    /// The table of some base conversions, made at their first use.
    pub fn conversion(&self, context: &Context, conversion: Conversion) -> Result<Arc<Memory>> {
        let mut kept = self.conversions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = kept.get(&conversion) {
            return Ok(Arc::clone(memory));
        }
        let words = conversion_table(&self.moduli, &conversion);
        let memory = Arc::new(context.upload("tables of a base conversion", &words)?);
        if kept.len() >= CONVERSIONS_KEPT {
            kept.clear();
        }
        kept.insert(conversion, Arc::clone(&memory));
        Ok(memory)
    }
}

/// The tables of the rings in use.
#[derive(Default)]
pub(super) struct TableCache {
    /// Ring id and tables, the most recently used last.
    rings: Mutex<Vec<(u64, Arc<Tables>)>>,
}

impl TableCache {
    /// The ring's tables, made at its first use.
    pub fn get(&self, context: &Context, ring: &RnsRing) -> Result<Arc<Tables>> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match rings.iter().position(|(id, _)| *id == ring.id()) {
            Some(i) => rings.remove(i),
            None => (ring.id(), Arc::new(Tables::new(context, ring)?)),
        };
        let tables = Arc::clone(&entry.1);
        rings.push(entry);
        if rings.len() > RINGS_KEPT {
            rings.remove(0);
        }
        Ok(tables)
    }
}

/// The constants of one limb, in the order of `struct Limb`.
fn limb_words(m: Modulus) -> [u32; LIMB_WORDS] {
    let p = m.value();
    let bits = 32 - p.leading_zeros();
    let r32 = m.reduce(1 << 32);
    [p, m.shoup(1), r32, m.shoup(r32), ((1u64 << (bits + 31)) / p as u64) as u32, bits - 1, 0, 0]
}

/// The layout of `shaders/lib/convert.wgsl`.
fn conversion_table(moduli: &[Modulus], conversion: &Conversion) -> Vec<u32> {
    let Conversion { from, width, to } = conversion;
    let mut out = Vec::with_capacity(from.len() * conversion.set_words());
    for set in from {
        let product = |skip: usize, m: Modulus| {
            let others = set.clone().filter(|&limb| limb != skip);
            others.fold(m.reduce(1), |product, limb| m.mul(product, m.reduce(moduli[limb].value() as u64)))
        };
        let padding = width - set.len();
        for limb in set.clone() {
            push_pair(&mut out, moduli[limb], moduli[limb].inv(product(limb, moduli[limb])));
        }
        out.extend(std::iter::repeat_n(0, 2 * padding));
        for m in to.iter().map(|&limb| moduli[limb]) {
            push_pair(&mut out, m, product(usize::MAX, m));
            out.extend(set.clone().map(|limb| product(limb, m)));
            out.extend(std::iter::repeat_n(0, padding));
        }
    }
    out
}

impl Conversion {
    /// Words of one set's constants.
    pub fn set_words(&self) -> usize {
        2 * self.width + self.to.len() * (2 + self.width)
    }
}

fn push_pair(out: &mut Vec<u32>, m: Modulus, w: u32) {
    out.extend([w, m.shoup(w)]);
}

/// Powers of `root` in bit-reversed order; `scale` replaces entry 0, which no butterfly uses, and multiplies entry 1.
fn push_twiddles(out: &mut Vec<u32>, m: Modulus, root: u32, log_n: u32, scale: u32) {
    let n = 1usize << log_n;
    let mut powers = vec![1; n];
    for i in 1..n {
        powers[i] = m.mul(powers[i - 1], root);
    }
    push_pair(out, m, scale);
    for i in 1..n {
        let w = powers[i.reverse_bits() >> (usize::BITS - log_n)];
        push_pair(out, m, if i == 1 { m.mul(w, scale) } else { w });
    }
}
