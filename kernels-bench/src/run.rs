//! A run: devices, ceilings, cases, composed operations, bars, files.

use std::cell::RefCell;

use heliostat::engine::cpu::NttLibrary;

use crate::{
    Result,
    args::Arguments,
    audit, bars,
    ceilings::{self, Ceilings},
    compare,
    composed::{self, Bench, CLOCK},
    devices::{Device, Devices},
    garbling,
    kernels::{Case, Kernel},
    measure::{Contender, Finding, Group, Work, contender, group},
    operands::Prepared,
    report::{
        Machine, Report, Row, charts, commit,
        files::{self, Folder},
        html, table,
    },
    stats::Effort,
    suite::{self, Scale},
    yardsticks,
};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every result was right, or nothing is slower.
    Right,
    /// Some result was wrong.
    Wrong,
    /// Something is slower outside noise, and that was to fail.
    Slower,
}

/// Does what the command line says.
///
/// # Errors
/// One sentence.
pub fn run(arguments: &Arguments) -> Result<Outcome> {
    match arguments.compare.as_deref() {
        Some([before, after]) => {
            let comparison = compare::of(&Report::read(before)?, &Report::read(after)?);
            print!("{comparison}");
            let slower = arguments.fail_on_slower && comparison.anything_slower();
            Ok(if slower { Outcome::Slower } else { Outcome::Right })
        }
        _ => measure(arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<Outcome> {
    if cfg!(debug_assertions) && !arguments.quick {
        eprintln!("note: this is not a release build; its figures mean nothing");
    }
    files::end_between_files()?;
    let folder = arguments.out.as_deref().map(Folder::open).transpose()?;
    let devices = Devices::open(arguments)?;
    let mut machine = Machine::here(devices.gpu_note.clone());
    println!("{machine}\ncommit   {}\n", commit());

    let ceilings = ceilings::all(&devices.main, arguments.quick)?;
    println!("{}", table::ceilings(&ceilings));

    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let not_run = RefCell::default();
    let bench = Bench { arguments, devices: &devices, ceilings: &ceilings, effort, not_run };
    let mut groups = Vec::new();
    println!("{}", table::HEADER);
    let mut done = |group: Group| {
        print!("{}", table::rows(&group.iter().filter(|f| is_result(f)).map(|f| &f.row).collect::<Vec<_>>()));
        groups.push(group);
        Ok(())
    };
    for case in suite::cases(&Scale::of(arguments, &devices)) {
        if arguments.wants(case.kernel.name()) {
            done(kernel(&bench, &case)?)?;
        }
    }
    for case in suite::bar_cases(arguments.quick) {
        if arguments.wants(case.kernel.name()) {
            done(against_libraries(&bench, &case)?)?;
        }
    }
    composed::run(&bench, &mut done)?;
    garbling::run(&bench, &mut done)?;

    let results: Vec<Row> = groups.iter().flatten().filter(|f| is_result(f)).map(|f| f.row.clone()).collect();
    machine.not_run = bench.not_run.take();
    machine.not_run.iter().for_each(|note| println!("NOT RUN: {note}"));
    let bars = bars::all(&groups);
    let audit = audit::all()?;
    println!("\n{}", table::bars(&bars));
    if !audit.is_empty() {
        println!("{}", table::audit(&audit));
    }
    let right = all_right(&groups);
    let report =
        Report { version: env!("CARGO_PKG_VERSION").into(), commit: commit(), machine, ceilings, results, bars, audit };
    if let Some(folder) = folder {
        write(&folder, &report, &groups)?;
    }
    Ok(if right { Outcome::Right } else { Outcome::Wrong })
}

/// Whether there are results and every one is right. The clock of the bars counts too: a wrong transform would make a wrong scale.
fn all_right(groups: &[Group]) -> bool {
    groups.iter().flatten().all(|f| f.row.verified) && groups.iter().flatten().any(is_result)
}

/// Whether it is a row of its own, and not the clock beside one.
fn is_result(finding: &Finding) -> bool {
    finding.row.form != CLOCK
}

/// A case on every device; transforms by the libraries as well.
fn kernel(bench: &Bench, case: &Case) -> Result<Group> {
    let prepared = Prepared::new(case)?;
    let mut contenders = yardsticks::ntt::contenders(&prepared)?;
    for (device, ceilings) in bench.devices.main.iter().zip(bench.ceilings) {
        contenders.extend(on_device(bench, &prepared, device, ceilings)?);
    }
    group(&Work::of(case), bench.effort, contenders)
}

/// A case of the bars on the CPU and in hardware, beside libraries, with more rounds.
fn against_libraries(bench: &Bench, case: &Case) -> Result<Group> {
    let prepared = Prepared::new(case)?;
    let threads: Vec<usize> = bench.devices.main.iter().map(|device| device.label().threads).collect();
    // Two threads, where the rows have one and many.
    let two = (threads.iter().max() > Some(&2)).then(|| Device::cpu(NttLibrary::default(), 2)).transpose()?;
    let matrices;
    let mut contenders = yardsticks::ntt::contenders(&prepared)?;
    let mut effort = bench.effort.careful();
    if let Kernel::ModularGemm { inputs, outputs } = case.kernel {
        effort = Effort { runs: 7, least_runs: 5, ..bench.effort.heavy() };
        let sizes = yardsticks::gemm::Sizes { outputs, inputs, columns: case.gemm_columns() };
        matrices = yardsticks::gemm::Matrices::new(sizes);
        for threads in [1, 2] {
            if threads == 1 || two.is_some() || bench.devices.main.iter().any(|d| d.label().threads == 2) {
                contenders.push(matrices.contender(threads)?);
            }
        }
        if let Some(two) = &two {
            contenders.push(contender(&prepared, two, None)?);
        }
    }
    let main = bench.devices.main.iter().zip(bench.ceilings);
    for (device, ceilings) in main.filter(|(device, _)| device.as_gpu().is_none() || device.is_real_gpu()) {
        contenders.extend(on_device(bench, &prepared, device, ceilings)?);
    }
    group(&Work::of(case), effort, contenders)
}

/// The case on a device, unless that cannot do it at all.
fn on_device<'a>(
    bench: &Bench,
    prepared: &'a Prepared,
    device: &'a Device,
    ceilings: &'a Ceilings,
) -> Result<Option<Contender<'a>>> {
    let what = format!("{}, N = {}", prepared.case.kernel.name(), prepared.case.n);
    bench.attempt(device, &what, contender(prepared, device, Some(ceilings)))
}

fn write(folder: &Folder, report: &Report, groups: &[Group]) -> Result<()> {
    let pictures = charts::all(report, groups);
    let mut paths = vec![folder.write("kernels.json", &(serde_json::to_string_pretty(report)? + "\n"))?];
    for picture in &pictures {
        paths.push(folder.write(&format!("{}.svg", picture.name), &picture.standalone())?);
    }
    paths.push(folder.write("kernels.html", &html::page(report, &pictures))?);
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    println!("written: {}", paths.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Operation;

    /// A kernel whose result is wrong in one word, on a device of its own.
    fn measured(wrong: bool) -> Group {
        let case = Case { kernel: Kernel::Add, n: 64, bits: 20, limbs: 1, batch: 1 };
        let mut prepared = Prepared::new(&case).unwrap();
        prepared.expected.blocks[0].1[5] ^= u32::from(wrong);
        let device = Device::cpu(NttLibrary::default(), 1).unwrap();
        let effort = Effort { runs: 1, ..Effort::QUICK };
        group(&Work::of(&case), effort, vec![contender(&prepared, &device, None).unwrap()]).unwrap()
    }

    #[test]
    fn one_wrong_word_makes_the_run_wrong() {
        assert!(all_right(&[measured(false)]));
        assert!(!all_right(&[measured(false), measured(true)]) && !all_right(&[]));
        let row = measured(true)[0].row.clone();
        assert!(table::rows(&[&row]).contains("WRONG"));
    }

    #[test]
    fn a_result_that_changes_while_it_is_timed_is_wrong() {
        let case = Case { kernel: Kernel::Add, n: 64, bits: 20, limbs: 1, batch: 1 };
        let label = Device::cpu(NttLibrary::default(), 1).unwrap().label().clone();
        let operation: Operation = Box::new(|_| Ok(()));
        let again = Some(Box::new(|| Ok(false)) as crate::measure::Check);
        let contender = Contender { label, verified: true, ceilings: None, operation, again };
        let effort = Effort { runs: 1, ..Effort::QUICK.heavy() };
        assert!(!group(&Work::of(&case), effort, vec![contender]).unwrap()[0].row.verified);
    }
}
