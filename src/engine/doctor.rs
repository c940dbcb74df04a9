//! What this machine can compute on, and what stands in the way: the `doctor` command.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Backend,
    cpu::CpuBackend,
    gpu::{AdapterSummary, adapters},
};

/// The report: facts, and advice in plain sentences. [`fmt::Display`] prints it, serde writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Processor name and number of threads.
    pub cpu: String,
    /// Instruction sets that the kernels and the garbler look for, and whether they are there.
    pub cpu_features: Vec<(&'static str, bool)>,
    /// Memory in bytes, where the system tells it.
    pub memory_bytes: Option<u64>,
    /// What stands on the disk between the program and a GPU.
    pub facts: Facts,
    /// Every adapter, software ones too.
    pub adapters: Vec<AdapterSummary>,
    /// What `--backend auto` would say.
    pub auto: String,
    /// What to do, one sentence or two each; empty when nothing is wrong.
    pub advice: Vec<String>,
}

/// Looks at the machine. Takes as long as starting the GPU drivers.
pub fn report() -> Report {
    let adapters = adapters();
    let facts = Facts::gather();
    let mut advice = facts.advice(&adapters);
    let cpu_features = cpu_features();
    if advice.is_empty() && !adapters.is_empty() && adapters.iter().all(|a| a.software) {
        advice.push(
            "Only software adapters are here: the CPU backend is faster. Name one with --adapter to use it all the same."
                .into(),
        );
    }
    if cpu_features.iter().any(|&(name, present)| name == "AES" && !present) {
        advice.push("The CPU has no AES instructions: garbled layers will be many times slower.".into());
    }
    Report {
        cpu: CpuBackend::new(None).info().adapter,
        cpu_features,
        memory_bytes: memory_bytes(),
        auto: super::select::open(super::BackendChoice::Auto, None, None)
            .map_or_else(|e| e.to_string(), |opened| opened.reason),
        facts,
        adapters,
        advice,
    }
}

/// The parts of a Vulkan installation that a headless machine may lack (Linux; elsewhere all is empty).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Facts {
    /// Whether the checks below apply to this system.
    pub linux: bool,
    /// The Vulkan loader, `libvulkan.so.1`.
    pub loader: Option<PathBuf>,
    /// Driver descriptions (ICD json files) that the loader will read.
    pub icds: Vec<Icd>,
    /// `VK_DRIVER_FILES` or `VK_ICD_FILENAMES`, if set: they replace the standard places.
    pub driver_files: Option<String>,
    /// NVIDIA's kernel driver: version line, or the device node.
    pub nvidia: Option<String>,
    /// NVIDIA's Vulkan driver, `libGLX_nvidia.so.0`.
    pub nvidia_library: Option<PathBuf>,
    /// Render nodes that exist but that this user may not open.
    pub closed_render_nodes: Vec<PathBuf>,
}

/// A driver description for the Vulkan loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Icd {
    /// The json file.
    pub path: PathBuf,
    /// The driver library that it names, `None` when the file is absent or cannot be read.
    pub library: Option<String>,
    /// Whether that library is there.
    pub found: bool,
}

impl Facts {
    /// Looks in the standard places and at the environment.
    pub fn gather() -> Self {
        if cfg!(target_os = "linux") {
            Self::gather_in(Path::new("/"), |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        } else {
            Self::default()
        }
    }

    /// As [`Facts::gather`] below another root and with other environment variables, for tests.
    fn gather_in(root: &Path, env: impl Fn(&str) -> Option<String>) -> Self {
        let libraries = Libraries::new(root, env("LD_LIBRARY_PATH"));
        let driver_files = env("VK_DRIVER_FILES").or_else(|| env("VK_ICD_FILENAMES"));
        let icds = icd_paths(root, driver_files.as_deref(), &env)
            .into_iter()
            .map(|path| {
                let library = icd_library(&path);
                let found = library.as_deref().is_some_and(|library| libraries.has(library, path.parent()));
                Icd { path, library, found }
            })
            .collect();
        let version = std::fs::read_to_string(root.join("proc/driver/nvidia/version")).ok();
        let nvidia = version.and_then(|text| text.lines().next().map(str::to_owned)).or_else(|| {
            ["proc/driver/nvidia", "dev/nvidia0"]
                .into_iter()
                .map(|path| root.join(path))
                .find(|path| path.exists())
                .map(|path| path.display().to_string())
        });
        Self {
            linux: true,
            loader: libraries.find("libvulkan.so.1"),
            icds,
            driver_files,
            nvidia,
            nvidia_library: libraries.find("libGLX_nvidia.so.0"),
            closed_render_nodes: closed_render_nodes(root),
        }
    }

    /// What stands in the way of a GPU, given the adapters that were found, the most likely cause first.
    pub fn advice(&self, adapters: &[AdapterSummary]) -> Vec<String> {
        let mut advice = Vec::new();
        if adapters.iter().any(|a| !a.software) {
            for a in adapters.iter().filter(|a| !a.software && !a.int64) {
                advice.push(format!("{} has no 64-bit integers in shaders: kernels use 16-bit products.", a.name));
            }
            return advice;
        }
        if !self.linux {
            if adapters.is_empty() {
                advice.push("No adapter: install the GPU vendor's driver.".into());
            }
            return advice;
        }
        match (&self.loader, &self.nvidia) {
            (None, Some(nvidia)) => advice.push(format!(
                "The NVIDIA driver is present ({nvidia}) but there is no Vulkan loader (libvulkan.so.1): install libvulkan1."
            )),
            (None, None) => advice.push(
                "There is no Vulkan loader (libvulkan.so.1): install libvulkan1, and the GPU's driver \
                 (mesa-vulkan-drivers for AMD and Intel)."
                    .into(),
            ),
            _ => {}
        }
        if self.nvidia.is_some() {
            self.nvidia_advice(&mut advice);
        }
        for icd in &self.icds {
            match &icd.library {
                None => advice.push(format!("The driver description {} cannot be read.", icd.path.display())),
                Some(library) if !icd.found => {
                    advice.push(format!("{} names the driver {library}, which is not there.", icd.path.display()));
                }
                _ => {}
            }
        }
        for node in &self.closed_render_nodes {
            advice.push(format!(
                "This user may not open {}: add the user to the group that owns it (usually render).",
                node.display()
            ));
        }
        if self.loader.is_some() && self.icds.is_empty() && self.nvidia.is_none() {
            advice.push(
                "The Vulkan loader is present but no driver description (ICD json): install the GPU's driver \
                 (mesa-vulkan-drivers for AMD and Intel)."
                    .into(),
            );
        }
        advice
    }

    fn nvidia_advice(&self, advice: &mut Vec<String>) {
        let names_nvidia = |icd: &Icd| icd.library.as_deref().is_some_and(|library| library.contains("nvidia"));
        if self.nvidia_library.is_none() {
            advice.push(
                "NVIDIA's Vulkan driver (libGLX_nvidia.so.0) is absent, although its kernel driver is loaded: install \
                 libnvidia-gl of the same version; in a container, NVIDIA_DRIVER_CAPABILITIES must contain graphics."
                    .into(),
            );
        }
        if self.icds.iter().any(names_nvidia) {
            return;
        }
        if let Some(files) = &self.driver_files {
            advice.push(format!("VK_DRIVER_FILES or VK_ICD_FILENAMES is {files:?}, which hides the NVIDIA driver."));
            return;
        }
        advice.push(
            "No ICD json names the NVIDIA driver: write {\"file_format_version\": \"1.0.0\", \"ICD\": {\"library_path\": \
             \"libGLX_nvidia.so.0\", \"api_version\": \"1.3.0\"}} to a file and set VK_DRIVER_FILES to its path, or put it \
             in /etc/vulkan/icd.d/nvidia_icd.json."
                .into(),
        );
    }
}

/// Where the loader looks (Vulkan-Loader, `LoaderDriverInterface.md`), or what the variable says instead.
fn icd_paths(root: &Path, driver_files: Option<&str>, env: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    if let Some(files) = driver_files {
        // An entry may be a folder.
        return std::env::split_paths(files).flat_map(|p| if p.is_dir() { json_files(&p) } else { vec![p] }).collect();
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    let home = env("HOME").map(PathBuf::from);
    folders.extend(env("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".config"))));
    folders.extend(["usr/local/etc", "etc"].map(|p| root.join(p)));
    folders.extend(env("XDG_DATA_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".local/share"))));
    match env("XDG_DATA_DIRS") {
        Some(dirs) => folders.extend(std::env::split_paths(&dirs)),
        None => folders.extend(["usr/local/share", "usr/share"].map(|p| root.join(p))),
    }
    let mut seen = BTreeSet::new();
    let files = folders.into_iter().flat_map(|folder| json_files(&folder.join("vulkan/icd.d")));
    files.filter(|path| seen.insert(path.clone())).collect()
}

fn json_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    files
}

fn icd_library(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json.get("ICD")?.get("library_path")?.as_str().map(str::to_owned)
}

fn closed_render_nodes(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("dev/dri")).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_render = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("renderD"));
    let closed = |path: &PathBuf| std::fs::OpenOptions::new().read(true).write(true).open(path).is_err();
    let mut nodes: Vec<_> = entries.filter(is_render).filter(closed).collect();
    nodes.sort();
    nodes
}

/// Where the dynamic linker finds libraries, without loading any.
struct Libraries {
    folders: Vec<PathBuf>,
    /// `/etc/ld.so.cache`: names and paths between zero bytes.
    cache: Vec<u8>,
}

impl Libraries {
    fn new(root: &Path, ld_library_path: Option<String>) -> Self {
        let mut folders: Vec<_> = ld_library_path.iter().flat_map(std::env::split_paths).collect();
        let multiarch = format!("{}-linux-gnu", std::env::consts::ARCH);
        for base in ["usr/local/lib", "lib", "usr/lib", "lib64", "usr/lib64"] {
            folders.extend([root.join(base).join(&multiarch), root.join(base)]);
        }
        Self { folders, cache: std::fs::read(root.join("etc/ld.so.cache")).unwrap_or_default() }
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        let in_folder = self.folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
        in_folder.or_else(|| {
            let ending = format!("/{name}");
            let entries = self.cache.split(|&byte| byte == 0).filter(|entry| entry.ends_with(ending.as_bytes()));
            entries
                .filter_map(|entry| std::str::from_utf8(entry).ok())
                .map(PathBuf::from)
                .find(|path| path.is_absolute() && path.exists())
        })
    }

    /// Whether an ICD's `library_path` leads somewhere: a name, an absolute path, or a path from the json's folder.
    fn has(&self, library: &str, folder: Option<&Path>) -> bool {
        if library.contains('/') {
            folder.is_some_and(|folder| folder.join(library).exists())
        } else {
            self.find(library).is_some()
        }
    }
}

fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("AVX-512F", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512 IFMA", std::is_x86_feature_detected!("avx512ifma")),
        ("AES", std::is_x86_feature_detected!("aes")),
        ("VAES", std::is_x86_feature_detected!("vaes")),
        ("VPCLMULQDQ", std::is_x86_feature_detected!("vpclmulqdq")),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
        ("AES", std::arch::is_aarch64_feature_detected!("aes")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Vec::new();
}

fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?.trim();
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes_no = |&(name, present): &(&str, bool)| format!("{name} {}", if present { "yes" } else { "no" });
        writeln!(f, "CPU\n  {}", self.cpu)?;
        writeln!(f, "  {}", self.cpu_features.iter().map(yes_no).collect::<Vec<_>>().join(", "))?;
        if let Some(bytes) = self.memory_bytes {
            writeln!(f, "  memory {}", Bytes(bytes))?;
        }
        if self.facts.linux {
            self.facts.fmt(f)?;
        }
        writeln!(f, "Adapters")?;
        if self.adapters.is_empty() {
            writeln!(f, "  none")?;
        }
        for a in &self.adapters {
            writeln!(f, "  {}: {} ({}, {}, {})", a.index, a.name, a.kind, a.api, a.driver)?;
            writeln!(
                f,
                "     workgroups {} and {} invocations, bindings {}, buffers {}, subgroups {} to {}",
                Bytes(a.workgroup_memory.into()),
                a.workgroup_invocations,
                Bytes(a.binding_bytes),
                Bytes(a.buffer_bytes),
                a.subgroup.0,
                a.subgroup.1,
            )?;
            let features = [
                ("SHADER_INT64", a.int64),
                ("SUBGROUP", a.subgroup_ops),
                ("TIMESTAMP_QUERY", a.timestamps),
                ("IMMEDIATES", a.immediates),
                ("MAPPABLE_PRIMARY_BUFFERS", a.mappable),
            ];
            let features = features.iter().map(yes_no).collect::<Vec<_>>().join(", ");
            writeln!(f, "     {features}; products {}", a.form)?;
        }
        writeln!(f, "Backend\n  auto: {}", self.auto)?;
        if !self.advice.is_empty() {
            writeln!(f, "Advice")?;
        }
        for advice in &self.advice {
            writeln!(f, "  * {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Vulkan")?;
        match &self.loader {
            Some(path) => writeln!(f, "  loader {}", path.display())?,
            None => writeln!(f, "  loader (libvulkan.so.1) not found")?,
        }
        if let Some(files) = &self.driver_files {
            writeln!(f, "  driver files set to {files}")?;
        }
        for icd in &self.icds {
            let library = icd.library.as_deref().unwrap_or("unreadable");
            writeln!(f, "  driver {} -> {library}{}", icd.path.display(), if icd.found { "" } else { " (not found)" })?;
        }
        if self.icds.is_empty() {
            writeln!(f, "  no driver description (ICD json)")?;
        }
        if let Some(nvidia) = &self.nvidia {
            writeln!(f, "  NVIDIA kernel driver: {nvidia}")?;
        }
        Ok(())
    }
}

/// Bytes in the largest binary unit that leaves at least 1.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.0 >> shift > 0) {
            Some((shift, unit)) => {
                let value = self.0 as f64 / (1u64 << shift) as f64;
                write!(f, "{} {unit}", (value * 10.0).round() / 10.0)
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file tree with these files, each with its content.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn facts(files: &[(&str, &str)]) -> Facts {
        Facts::gather_in(tree(files).path(), |_| None)
    }

    const NVIDIA: (&str, &str) = ("proc/driver/nvidia/version", "NVRM version: 570\nGCC version: 12\n");
    const LOADER: (&str, &str) = ("usr/lib64/libvulkan.so.1", "");
    const DRIVER: (&str, &str) = ("usr/lib64/libGLX_nvidia.so.0", "");
    const ICD: (&str, &str) =
        ("etc/vulkan/icd.d/nvidia_icd.json", r#"{"ICD": {"library_path": "libGLX_nvidia.so.0"}}"#);

    #[test]
    fn nvidia_without_a_loader() {
        let advice = facts(&[NVIDIA, DRIVER, ICD]).advice(&[]);
        assert_eq!(
            advice,
            [
                "The NVIDIA driver is present (NVRM version: 570) but there is no Vulkan loader (libvulkan.so.1): install \
              libvulkan1."
            ]
        );
    }

    #[test]
    fn nvidia_without_a_description_or_library() {
        let advice = facts(&[NVIDIA, LOADER, DRIVER]).advice(&[]);
        assert_eq!(advice.len(), 1);
        assert!(advice[0].starts_with("No ICD json") && advice[0].contains("VK_DRIVER_FILES"), "{advice:?}");
        let advice = facts(&[NVIDIA, LOADER, ICD]).advice(&[]);
        assert!(advice[0].contains("libGLX_nvidia.so.0) is absent"), "{advice:?}");
        assert!(advice[1].contains("names the driver libGLX_nvidia.so.0, which is not there"), "{advice:?}");
        assert!(facts(&[NVIDIA, LOADER, DRIVER, ICD]).advice(&[]).is_empty());
        assert!(facts(&[("dev/nvidia0", "")]).nvidia.unwrap().ends_with("dev/nvidia0"));
    }

    #[test]
    fn driver_files_replace_the_standard_places() {
        let root = tree(&[NVIDIA, LOADER, DRIVER, ICD]);
        let other = root.path().join("other.json");
        let set = other.display().to_string();
        let gather = || Facts::gather_in(root.path(), |name| (name == "VK_DRIVER_FILES").then(|| set.clone()));
        let missing = gather();
        assert_eq!(missing.icds, [Icd { path: other.clone(), library: None, found: false }]);
        let advice = missing.advice(&[]);
        assert!(advice.iter().any(|a| a.contains("hides the NVIDIA driver")), "{advice:?}");
        assert!(advice.iter().any(|a| a.contains("cannot be read")), "{advice:?}");
        fs::write(&other, ICD.1).unwrap();
        assert!(gather().advice(&[]).is_empty());
    }

    #[test]
    fn a_bare_machine() {
        let advice = facts(&[]).advice(&[]);
        assert!(advice.len() == 1 && advice[0].contains("install libvulkan1"), "{advice:?}");
        let advice = facts(&[LOADER]).advice(&[]);
        assert!(advice.len() == 1 && advice[0].contains("no driver description"), "{advice:?}");
    }

    #[test]
    fn relative_driver_paths_start_at_the_description() {
        let text = r#"{"ICD": {"library_path": "../lib/libdriver.so"}}"#;
        let root = tree(&[("usr/share/vulkan/icd.d/a.json", text), ("usr/share/vulkan/lib/libdriver.so", "")]);
        assert!(Facts::gather_in(root.path(), |_| None).icds[0].found);
    }

    #[test]
    fn the_report_of_this_machine_prints() {
        let report = report();
        let text = report.to_string();
        for part in ["CPU\n", "Adapters\n", "auto: "] {
            assert!(text.contains(part), "{text}");
        }
        for adapter in &report.adapters {
            assert!(text.contains(&adapter.name));
        }
        assert!(serde_json::to_string(&report).unwrap().contains("advice"));
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(Bytes(1 << 27).to_string(), "128 MiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes(100).to_string(), "100 bytes");
    }
}
