//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::{composed, garbling, kernels::Kernel};

/// Measures Heliostat's compute engine: every kernel on one CPU thread, on all of them, and on the best GPU, each result
/// checked, beside the libraries that are its yardsticks and the limits of the machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "kernels-bench", version)]
pub struct Arguments {
    /// Small sizes and few runs, a software adapter where there is no GPU: to see that everything works, not to quote.
    #[arg(long)]
    pub quick: bool,
    /// Only these kernels or composed operations, by name, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = kernel)]
    pub kernels: Vec<String>,
    /// Ring dimensions, powers of two from 1024 to 65536, separated by commas.
    #[arg(long, value_name = "NS", value_delimiter = ',', value_parser = size)]
    pub sizes: Vec<usize>,
    /// Writes kernels.json, kernels.html and its pictures as SVG there.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// This adapter, by index or part of its name, instead of the best hardware GPU.
    #[arg(long, value_name = "NAME|INDEX")]
    pub adapter: Option<String>,
    /// CPU threads of the rows that use more than one; all of the machine's by default.
    #[arg(long, value_name = "COUNT", value_parser = threads)]
    pub threads: Option<usize>,
    /// Most device memory that a GPU's buffers may take, such as 4GiB or 512MiB.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub vram: Option<u64>,
    /// Compares two reports (kernels.json) instead of measuring.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = MEASURING)]
    pub compare: Option<Vec<PathBuf>>,
    /// With --compare: fails if anything is slower outside noise.
    #[arg(long, requires = "compare")]
    pub fail_on_slower: bool,
}

const MEASURING: [&str; 7] = ["quick", "kernels", "sizes", "out", "adapter", "threads", "vram"];

impl Arguments {
    /// Whether a kernel or composed operation was asked for.
    pub fn wants(&self, kernel: &str) -> bool {
        self.kernels.is_empty() || self.kernels.iter().any(|name| name == kernel)
    }

    /// The ring dimensions of a run.
    pub fn dimensions(&self) -> Vec<usize> {
        match (self.sizes.as_slice(), self.quick) {
            ([], true) => vec![1024, 4096],
            ([], false) => (10..=16).map(|log| 1 << log).collect(),
            (sizes, _) => {
                let mut sizes = sizes.to_vec();
                sizes.sort_unstable();
                sizes.dedup();
                sizes
            }
        }
    }
}

fn kernel(text: &str) -> Result<String, String> {
    let names = || Kernel::NAMES.into_iter().chain(composed::NAMES).chain(garbling::NAMES);
    match names().any(|name| name == text) {
        true => Ok(text.into()),
        false => Err(format!("there is {}", names().collect::<Vec<_>>().join(", "))),
    }
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().unwrap_or(0usize);
    let fits = size.is_power_of_two() && (1024..=65536).contains(&size);
    if fits { Ok(size) } else { Err("a ring dimension is a power of two from 1024 to 65536".into()) }
}

fn threads(text: &str) -> Result<usize, String> {
    let count = text.parse().unwrap_or(0usize);
    if (1..=1024).contains(&count) { Ok(count) } else { Err("a number of threads is from 1 to 1024".into()) }
}

fn bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let units = [("", 1), ("MB", 1_000_000), ("GB", 1_000_000_000), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let unit = units.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(&text[end..])).map(|(_, unit)| unit);
    let bytes = unit.and_then(|unit: u64| text[..end].parse::<u64>().ok()?.checked_mul(unit));
    bytes.filter(|b| *b > 0).ok_or("a size is a whole number of bytes, MB, MiB, GB or GiB, such as 4GiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, i32> {
        Arguments::try_parse_from([&["kernels-bench"], arguments].concat()).map_err(|e| e.exit_code())
    }

    #[test]
    fn lists_and_defaults() {
        let all = parse(&[]).unwrap();
        assert!(all.wants("rotate") && all.dimensions() == [1024, 2048, 4096, 8192, 16384, 32768, 65536]);
        let some = parse(&["--kernels", "mul,rotation", "--sizes", "8192,1024,8192"]).unwrap();
        assert!(some.wants("mul") && some.wants("rotation") && !some.wants("add"));
        assert_eq!(some.dimensions(), [1024, 8192]);
        let vram = |text| parse(&["--vram", text]).map(|arguments| arguments.vram);
        assert_eq!((vram("4GiB"), vram("5mb"), vram("7")), (Ok(Some(4 << 30)), Ok(Some(5_000_000)), Ok(Some(7))));
    }

    #[test]
    fn wrong_arguments_exit_2() {
        for wrong in [
            &["--kernels", "ntt"][..],
            &["--sizes", "1000"],
            &["--sizes", "512"],
            &["--threads", "0"],
            &["--vram", "4 potatoes"],
            &["--vram", "99999999999999GiB"],
            &["--compare", "a.json"],
            &["--compare", "a.json", "b.json", "--quick"],
            &["--fail-on-slower"],
            &["quick"],
        ] {
            assert_eq!(parse(wrong).unwrap_err(), 2, "{wrong:?}");
        }
    }
}
