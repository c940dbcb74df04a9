//! The functions that are computed on shares: one value describes what both parties run, what it costs, and what comes
//! out of it bit for bit.

use super::activation::SharedActivation;
use super::coins::Coins;
use super::exp::SharedExp;
use super::fields::{low_mask, pack, unpack};
use super::meter::{Cost, Cots};
use super::party::{Party, Role, Shares, Task};
use super::power::SharedPower;
use super::tanh::SharedTanh;
use super::truncate::Truncate;
use super::{SharedError, fields};
use crate::arith::ShareModulus;
use crate::arith::fixed::{ActivationTable, ExpTable, PowerTable, TanhTable};

/// A non-linear function of additive shares.
///
/// The client's share of the result is its mask `rho`, fixed before; the server gets the rest. Every constructor takes the
/// rings of input and output.
#[derive(Clone, Debug)]
pub struct SharedFunction {
    kind: Kind,
    input: u32,
    output: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    Truncate(Truncate),
    Activation(Box<SharedActivation>),
    Exp(Box<SharedExp>),
    Power(Box<SharedPower>),
    Tanh(Box<SharedTanh>),
}

impl SharedFunction {
    /// [`crate::arith::fixed::round_shift`] of values `-2^(l-2) <= x < 2^(l-2)`, `l` the bits of the input ring; rounds down
    /// or up. See [`Truncate`].
    ///
    /// # Errors
    /// If fewer than two bits would be left.
    pub fn truncate(shift: u32, input: ShareModulus, output: ShareModulus) -> Result<Self, SharedError> {
        Self::new(input, output, |input, output| Ok(Kind::Truncate(Truncate::new(shift, input, output)?)))
    }

    /// An activation of values `-2^(l-2) <= x < 2^(l-2)`, `l` the bits of the input ring. Its own table is made here: lines on
    /// half as many cells as the exact function has.
    ///
    /// # Errors
    /// If the input ring does not reach the table's range, or reaches over it by more than 8 bits.
    pub fn activation(f: &ActivationTable, input: ShareModulus, output: ShareModulus) -> Result<Self, SharedError> {
        Self::new(input, output, |input, output| {
            Ok(Kind::Activation(Box::new(SharedActivation::new(f, input, output)?)))
        })
    }

    /// The numerators of softmax, rows of `columns` scores that differ by less than half of the input ring within a row. Finer
    /// than the exact function: scores keep at least 10 fraction bits.
    ///
    /// # Errors
    /// If the input ring has no whole bits, or there are no columns.
    pub fn exp(f: &ExpTable, columns: usize, input: ShareModulus, output: ShareModulus) -> Result<Self, SharedError> {
        Self::new(input, output, |input, output| Ok(Kind::Exp(Box::new(SharedExp::new(f, columns, input, output)?))))
    }

    /// Reciprocal or inverse square root of values in `[2^min_log2, 2^(max_log2 + 1))`; others give a meaningless result.
    ///
    /// # Errors
    /// If the input ring has not at least `max_log2 + 2` bits, or the result's widths are out of range.
    pub fn power(
        f: &PowerTable,
        numerator: f64,
        in_frac: u32,
        out_frac: u32,
        input: ShareModulus,
        output: ShareModulus,
    ) -> Result<Self, SharedError> {
        Self::new(input, output, |input, output| {
            Ok(Kind::Power(Box::new(SharedPower::new(f, numerator, in_frac, out_frac, input, output)?)))
        })
    }

    /// `tanh` of values `-2^(l-2) <= x < 2^(l-2)`, `l` the bits of the input ring.
    ///
    /// # Errors
    /// If the input ring does not reach over the table's range.
    pub fn tanh(f: &TanhTable, input: ShareModulus, output: ShareModulus) -> Result<Self, SharedError> {
        Self::new(input, output, |input, output| Ok(Kind::Tanh(Box::new(SharedTanh::new(f, input, output)?))))
    }

    fn new(
        input: ShareModulus,
        output: ShareModulus,
        kind: impl FnOnce(u32, u32) -> Result<Kind, SharedError>,
    ) -> Result<Self, SharedError> {
        for modulus in [input, output] {
            if !modulus.is_valid() || matches!(modulus, ShareModulus::Prime(_)) {
                return Err(SharedError::Modulus(modulus));
            }
        }
        let (input, output) = (input.bits(), output.bits());
        Ok(Self { kind: kind(input, output)?, input, output })
    }

    /// Elements that belong together: counts must be multiples of it. 1 but for functions of rows.
    pub fn columns(&self) -> usize {
        match &self.kind {
            Kind::Exp(f) => f.columns(),
            _ => 1,
        }
    }

    /// What `count` elements cost, the restoring of the client's share included.
    ///
    /// # Errors
    /// If `count` is not a multiple of [`Self::columns`] or too large.
    pub fn cost(&self, count: usize) -> Result<Cost, SharedError> {
        self.check("elements", count, count)?;
        let mut cost = Cost::default();
        if count > 0 {
            match &self.kind {
                Kind::Truncate(f) => f.cost(count, &mut cost)?,
                Kind::Activation(f) => f.cost(count, &mut cost)?,
                Kind::Exp(f) => f.cost(count, &mut cost)?,
                Kind::Power(f) => f.cost(count, &mut cost)?,
                Kind::Tanh(f) => f.cost(count, &mut cost)?,
            }
            cost.restore(count, self.output)?;
        }
        Ok(cost)
    }

    /// COTs that `count` elements use up, exactly.
    ///
    /// # Errors
    /// As [`Self::cost`].
    pub fn cots(&self, count: usize) -> Result<Cots, SharedError> {
        Ok(self.cost(count)?.cots)
    }

    /// Bytes up and down for `count` elements, exactly.
    ///
    /// # Errors
    /// As [`Self::cost`].
    pub fn bytes(&self, count: usize) -> Result<(usize, usize), SharedError> {
        let cost = self.cost(count)?;
        Ok((cost.up, cost.down))
    }

    /// Flights, whatever the count.
    pub fn rounds(&self) -> usize {
        self.cost(self.columns()).map_or(0, |c| c.rounds)
    }

    /// The client's computation: its shares of the inputs, and the masks that are to be its shares of the results.
    ///
    /// # Errors
    /// If the lengths do not agree or the party is not the client.
    pub fn client(&self, party: Party, shares: Vec<u64>, rho: Vec<u64>) -> Result<Task<()>, SharedError> {
        let (shares, rho) = (Shares::new(shares), Shares::new(rho));
        self.check("the client's masks", shares.len(), rho.len())?;
        check_role(&party, Role::Client)?;
        let f = self.clone();
        Ok(Task::new(party, move |mut party| async move {
            if shares.is_empty() {
                return Ok(());
            }
            let y = f.run(&mut party, shares).await?;
            let rest = fields::generate(y.len(), |i| y[i].wrapping_sub(rho[i]));
            let mut message = Vec::new();
            pack(&rest, f.output, &mut message)?;
            party.send(message);
            Ok(())
        }))
    }

    /// The server's computation: its shares of the inputs to its shares of the results.
    ///
    /// # Errors
    /// If the party is not the server or the count is not a multiple of [`Self::columns`].
    pub fn server(&self, party: Party, shares: Vec<u64>) -> Result<Task<Vec<u64>>, SharedError> {
        let shares = Shares::new(shares);
        self.check("elements", shares.len(), shares.len())?;
        check_role(&party, Role::Server)?;
        let f = self.clone();
        Ok(Task::new(party, move |mut party| async move {
            if shares.is_empty() {
                return Ok(Vec::new());
            }
            let y = f.run(&mut party, shares).await?;
            let message = party.receive(fields::packed_len(y.len(), f.output)?).await?;
            let rest = unpack(&mut &message[..], f.output, y.len())?;
            let mut sum = fields::generate(y.len(), |i| y[i].wrapping_add(rest[i]) & low_mask(f.output));
            Ok(std::mem::take(&mut *sum))
        }))
    }

    /// What the protocol's output shares add up to, for the input shares (reduced here); `coins` stand for the shares that
    /// arise on the way.
    ///
    /// # Errors
    /// If the lengths do not agree.
    pub fn simulate(&self, client: &[u64], server: &[u64], coins: &mut Coins) -> Result<Vec<u64>, SharedError> {
        self.check("the server's shares", client.len(), server.len())?;
        Ok(match &self.kind {
            Kind::Truncate(f) => client.iter().zip(server).map(|(&c, &s)| f.simulate(c, s)).collect(),
            Kind::Activation(f) => f.simulate(client, server, coins),
            Kind::Exp(f) => f.simulate(client, server, coins),
            Kind::Power(f) => f.simulate(client, server, coins),
            Kind::Tanh(f) => f.simulate(client, server, coins),
        })
    }

    /// How far a result may be from the exact function of [`crate::arith::fixed`], in units of the output's last place; for
    /// powers, [`Self::relative_error_bound`] times the exact result comes on top.
    pub fn error_bound(&self) -> u64 {
        match &self.kind {
            Kind::Truncate(_) => 1,
            Kind::Activation(f) => f.error_bound(),
            Kind::Exp(f) => f.error_bound(),
            Kind::Power(f) => f.error_bound(),
            Kind::Tanh(f) => f.error_bound(),
        }
    }

    /// The part of the distance from the exact function that grows with the result; 0 but for powers.
    pub fn relative_error_bound(&self) -> f64 {
        match &self.kind {
            Kind::Power(f) => f.relative_error_bound(),
            _ => 0.0,
        }
    }

    /// The part of the distance from the real function that grows with the result; 0 but for powers.
    pub fn real_relative_error(&self) -> f64 {
        match &self.kind {
            Kind::Power(f) => f.real_relative_error(),
            _ => 0.0,
        }
    }

    /// How far a result may be from the real function of its input, in units of the output's last place; for powers,
    /// [`Self::real_relative_error`] times the result comes on top.
    pub fn real_error(&self) -> f64 {
        match &self.kind {
            Kind::Truncate(_) => 1.0,
            Kind::Activation(f) => f.real_error(),
            Kind::Exp(f) => f.real_error(),
            Kind::Power(_) => 1.0,
            Kind::Tanh(f) => f.real_error(),
        }
    }

    async fn run(&self, party: &mut Party, x: Shares) -> Result<Shares, SharedError> {
        let x = fields::generate(x.len(), |i| x[i] & low_mask(self.input));
        match &self.kind {
            Kind::Truncate(f) => f.run(party, &x).await,
            Kind::Activation(f) => f.run(party, &x).await,
            Kind::Exp(f) => f.run(party, &x).await,
            Kind::Power(f) => f.run(party, &x).await,
            Kind::Tanh(f) => f.run(party, &x).await,
        }
    }

    fn check(&self, what: &'static str, expected: usize, found: usize) -> Result<(), SharedError> {
        if expected != found {
            return Err(SharedError::Length { what, expected, found });
        }
        if !found.is_multiple_of(self.columns()) {
            return Err(SharedError::Rows { columns: self.columns(), found });
        }
        Ok(())
    }
}

fn check_role(party: &Party, role: Role) -> Result<(), SharedError> {
    if party.role() == role { Ok(()) } else { Err(SharedError::Role) }
}
