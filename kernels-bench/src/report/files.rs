//! The files of a run: each whole or absent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use heliostat::report::file;

use crate::Result;

/// A folder for the files of a run, found writable before the work begins.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes the folder if it is absent, and tries to write there.
    ///
    /// # Errors
    /// One sentence that names the folder.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|e| format!("cannot make the folder {}: {e}", path.display()))?;
        file::check_writable(&path.join("kernels.json"))?;
        Ok(Self(path.into()))
    }

    /// Writes a file; its path.
    ///
    /// # Errors
    /// One sentence; the file is then as it was.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        file::write_whole(&path, text.as_bytes())?;
        Ok(path)
    }
}

/// Lets an interrupt wait until no file is half written, and then end the program with status 130.
///
/// # Errors
/// If the system refuses a handler.
pub fn end_between_files() -> Result<()> {
    ctrlc::set_handler(|| {
        let _nothing_half_written = file::pause();
        eprintln!("error: interrupted; no report was written that is not whole");
        std::process::exit(130);
    })?;
    Ok(())
}
