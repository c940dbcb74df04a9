//! Alternatives for one piece of work, timed in turn and written as rows.

use std::sync::Arc;

use heliostat::{engine::EngineError, he::HeError};

use crate::{
    Error, Result,
    ceilings::Ceilings,
    cost::{self, Cost},
    devices::{Device, Label},
    kernels::Case,
    operands::Prepared,
    report::Row,
    stats::{Effort, Operation, Samples, interleave},
};

/// What was done, for reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Name of the operation.
    pub kernel: &'static str,
    /// Ring dimension; 0 where there is no ring.
    pub n: usize,
    /// Limbs of the data.
    pub limbs: usize,
    /// Polynomials, or what the kernel says.
    pub batch: usize,
    /// Sizes of the kernel's own.
    pub size: Option<String>,
    /// What it cannot do without.
    pub cost: Cost,
}

impl Work {
    /// A case as work.
    pub fn of(case: &Case) -> Self {
        let ring = !matches!(case.kernel, crate::kernels::Kernel::RingGemm { .. });
        let (n, limbs) = if ring { (case.n, case.limbs) } else { (0, 0) };
        Self { kernel: case.kernel.name(), n, limbs, batch: case.batch, size: case.size(), cost: cost::of(case) }
    }
}

/// One alternative.
pub struct Contender<'a> {
    /// Where it runs.
    pub label: Label,
    /// Whether its result was the expected one.
    pub verified: bool,
    /// The limits of that device.
    pub ceilings: Option<&'a Ceilings>,
    /// The work.
    pub operation: Operation<'a>,
    /// Whether the result is still the expected one after all that was timed.
    pub again: Option<Check<'a>>,
}

/// Does the work once more and compares.
pub type Check<'a> = Box<dyn FnOnce() -> Result<bool> + 'a>;

/// A row with what it was made from.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The row.
    pub row: Row,
    /// Bytes and multiplies.
    pub cost: Cost,
    /// Its samples; those of one group come from the same rounds.
    pub samples: Samples,
}

/// Everything measured in the same rounds.
pub type Group = Vec<Finding>;

/// Times the alternatives in turn.
///
/// # Errors
/// The first error of one of them.
pub fn group(work: &Work, effort: Effort, contenders: Vec<Contender>) -> Result<Group> {
    let mut operations = Vec::new();
    let mut labels = Vec::new();
    for Contender { label, verified, ceilings, operation, again } in contenders {
        operations.push(operation);
        labels.push((label, verified, ceilings.and_then(|c| c.limit_ns(&work.cost)), again));
    }
    let samples = interleave(effort, &mut operations)?;
    let row = |(samples, (label, verified, limit, again)): (Samples, (Label, bool, Option<f64>, Option<Check>))| {
        let verified = verified && again.map_or(Ok(true), |again| again())?;
        let row = Row {
            kernel: work.kernel.into(),
            n: work.n,
            limbs: work.limbs,
            batch: work.batch,
            size: work.size.clone(),
            backend: label.backend.into(),
            form: label.form,
            threads: label.threads,
            adapter: label.adapter,
            runs: samples.runs(),
            median_ns: samples.median(),
            iqr_ns: samples.iqr(),
            verified,
            limit_fraction: limit.map(|limit| limit / samples.median()),
        };
        Ok(Finding { row, cost: work.cost, samples })
    };
    samples.into_iter().zip(labels).map(row).collect()
}

/// Why a device cannot do something at all, if that is what the error says: it lacks a kernel, a limit or memory. Such work is
/// listed as not run; any other error ends the run.
pub fn excuse(error: &Error) -> Option<String> {
    let engine = error.downcast_ref().or_else(|| match error.downcast_ref() {
        Some(HeError::Engine(error)) => Some(error),
        _ => None,
    });
    matches!(engine?, EngineError::Unsupported { .. } | EngineError::OutOfMemory { .. }).then(|| error.to_string())
}

/// A case on a device, verified.
///
/// # Errors
/// Whatever the device reports.
pub fn contender<'a>(
    prepared: &'a Prepared,
    device: &'a Device,
    ceilings: Option<&'a Ceilings>,
) -> Result<Contender<'a>> {
    let (inputs, verified) = device.install(|| {
        let inputs = prepared.upload(device.backend())?;
        let verified = prepared.verify(device.backend(), &inputs)?;
        Ok((inputs, verified))
    })?;
    let inputs = Arc::new(inputs);
    let same = inputs.clone();
    let again: Check = Box::new(move || device.install(|| Ok(prepared.verify(device.backend(), &same)?)));
    let operation: Operation = Box::new(move |repeats| {
        let inputs = &inputs;
        device.install(|| {
            (0..repeats).try_for_each(|_| prepared.run(device.backend(), inputs).map(drop))?;
            Ok(device.wait()?)
        })
    });
    Ok(Contender { label: device.label().clone(), verified, ceilings, operation, again: Some(again) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_device_lacks_is_excused() {
        let lacks = || EngineError::OutOfMemory { operation: "mul", bytes: 1, live: 0, budget: None };
        assert!(excuse(&lacks().into()).is_some() && excuse(&HeError::Engine(lacks()).into()).is_some());
        let lost = EngineError::DeviceLost { operation: "mul", reason: "gone".into() };
        assert!(excuse(&lost.into()).is_none() && excuse(&"other".into()).is_none());
    }
}
