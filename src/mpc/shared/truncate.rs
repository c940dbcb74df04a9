//! Division by a power of two and change of ring, for values of known sign.
//!
//! With `-2^(l-2) <= x < 2^(l-2)` the sum `u = x + 2^(l-2)` has its highest bit clear, so its shares wrap around the ring
//! exactly if one of them has its highest bit set: `w = a + b - a b`, one COT (Rathee et al., "SiRnn", S&P 2021; Huang et
//! al., "Cheetah", USENIX Security 2022). Then `u >> s = (u_C >> s) + (u_S >> s) - 2^(l-s) w`, less the carry of the dropped
//! bits, which is ignored: one unit is added for it, and the result is `x / 2^s` rounded down or up, at random with the
//! right mean if the shares are random. Of `w` only the bits that the output ring has above `l - s` matter; with none, the
//! step is local.

use super::SharedError;
use super::cot::Batch;
use super::fields::{Fields, generate, low_mask};
use super::meter::Cost;
use super::party::{Party, Role, Shares};

/// `x / 2^shift` from a ring of `input` bits to one of `output` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    input: u32,
    output: u32,
    shift: u32,
}

impl Truncate {
    /// # Errors
    /// If a ring is not of 1 to 64 bits, or fewer than two bits would be left of the input.
    pub(super) fn new(shift: u32, input: u32, output: u32) -> Result<Self, SharedError> {
        if !(1..=64).contains(&input) || !(1..=64).contains(&output) || shift.saturating_add(2) > input {
            return Err(SharedError::Range { what: "bits dropped by a truncation", value: shift.into() });
        }
        Ok(Self { input, output, shift })
    }

    /// Bits of the wrap that are needed; 0 if each party truncates alone.
    fn wrap_bits(self) -> u32 {
        self.output.saturating_sub(self.input - self.shift)
    }

    pub(super) fn cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        match self.wrap_bits() {
            0 => Ok(()),
            bits => cost.products(&[], &[(count, bits)]),
        }
    }

    /// This party's shares of the result, `output` bits.
    pub(super) async fn run(self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let offset = if self.wrap_bits() == 0 { 0 } else { party.constant(self.offset()) };
        let lifted = generate(x.len(), |i| x[i].wrapping_add(offset) & low_mask(self.input));
        let wraps = wrap(party, self.input, self.wrap_bits(), &lifted).await?;
        let constant = party.constant(self.constant());
        Ok(generate(x.len(), |i| {
            let wrap = wraps.as_ref().map_or(0, |w| w[i]);
            self.assemble(lifted[i] >> self.shift, wrap).wrapping_add(constant) & low_mask(self.output)
        }))
    }

    /// What both parties' shares add up to.
    pub(super) fn simulate(self, client: u64, server: u64) -> u64 {
        let offset = if self.wrap_bits() == 0 { 0 } else { self.offset() };
        let server = server.wrapping_add(offset) & low_mask(self.input);
        let client = client & low_mask(self.input);
        let wrap = ((client | server) >> (self.input - 1)) & 1;
        let wrap = if self.wrap_bits() == 0 { 0 } else { wrap };
        let kept = (client >> self.shift).wrapping_add(server >> self.shift);
        self.assemble(kept, wrap).wrapping_add(self.constant()) & low_mask(self.output)
    }

    fn offset(self) -> u64 {
        1 << (self.input - 2)
    }

    /// One unit for the carry, and the offset taken back.
    fn constant(self) -> u64 {
        let unit = u64::from(self.shift > 0);
        if self.wrap_bits() == 0 { unit } else { unit.wrapping_sub(self.offset() >> self.shift) }
    }

    fn assemble(self, kept: u64, wrap: u64) -> u64 {
        // With a shift of 0 in a ring of 64 bits there is nothing above.
        kept.wrapping_sub(wrap.checked_shl(self.input - self.shift).unwrap_or(0))
    }
}

/// Additive shares modulo `2^bits` of the wrap of shares modulo `2^ring` of values with a clear highest bit; nothing for
/// 0 bits. The shares must be reduced.
async fn wrap(party: &mut Party, ring: u32, bits: u32, x: &[u64]) -> Result<Option<Shares>, SharedError> {
    let wraps = wraps(party, &[(ring, bits, x)]).await?;
    Ok(wraps.into_iter().next().flatten())
}

/// [`wrap`] of several `(ring, bits, shares)` in one flight, or none if no bits are needed.
async fn wraps(party: &mut Party, terms: &[(u32, u32, &[u64])]) -> Result<Vec<Option<Shares>>, SharedError> {
    let needed = || terms.iter().filter(|t| t.1 > 0);
    let highest: Vec<Shares> = needed().map(|&(ring, _, x)| generate(x.len(), |i| (x[i] >> (ring - 1)) & 1)).collect();
    if highest.is_empty() {
        return Ok(terms.iter().map(|_| None).collect());
    }
    let fields = needed().map(|&(_, bits, _)| Fields::ring(bits)).collect::<Result<Vec<_>, _>>()?;
    let batches: Vec<_> = fields.iter().zip(&highest).map(|(&f, h)| Batch::new(f, h)).collect();
    let (sent, received) = match party.role {
        Role::Client => party.products(&[], &batches).await?,
        Role::Server => party.products(&batches, &[]).await?,
    };
    // a + b - a b, the product being shared.
    let mut wraps = fields
        .iter()
        .zip(&highest)
        .zip(sent.iter().chain(&received))
        .map(|((f, h), product)| generate(h.len(), |i| f.sub(h[i], product[i])));
    Ok(terms.iter().map(|t| if t.1 > 0 { wraps.next() } else { None }).collect())
}

/// A value in `[0, 2^(from-1))` to another ring, exactly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extend {
    pub(super) from: u32,
    pub(super) to: u32,
}

impl Extend {
    fn bits(self) -> u32 {
        self.to.saturating_sub(self.from)
    }

    pub(super) fn cost(self, count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        Self::cost_many(&[self], count, cost)
    }

    /// The cost of [`extend`].
    pub(super) fn cost_many(terms: &[Self], count: usize, cost: &mut Cost) -> Result<(), SharedError> {
        let batches: Vec<_> = terms.iter().filter(|t| t.bits() > 0).map(|t| (count, t.bits())).collect();
        if batches.is_empty() { Ok(()) } else { cost.products(&[], &batches) }
    }

    pub(super) async fn run(self, party: &mut Party, x: &[u64]) -> Result<Shares, SharedError> {
        let mut extended = extend(party, &[(self, x)]).await?;
        extended.pop().ok_or(SharedError::Internal { what: "an extension" })
    }
}

/// Changes of ring, all in one flight (none if every ring shrinks). The shares must be reduced.
pub(super) async fn extend(party: &mut Party, terms: &[(Extend, &[u64])]) -> Result<Vec<Shares>, SharedError> {
    let needs: Vec<_> = terms.iter().map(|&(t, x)| (t.from, t.bits(), x)).collect();
    let wraps = wraps(party, &needs).await?;
    Ok(terms
        .iter()
        .zip(&wraps)
        .map(|(&(t, x), wrap)| {
            generate(x.len(), |i| {
                let wrap = wrap.as_ref().map_or(0, |w| w[i]);
                x[i].wrapping_sub(wrap.checked_shl(t.from).unwrap_or(0)) & low_mask(t.to)
            })
        })
        .collect())
}
