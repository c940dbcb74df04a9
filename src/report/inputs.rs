//! Texts to run: from the command line, from a file with one a line, or from a column of a tab-separated file.

use std::path::Path;

use super::ReportError;

/// Largest input file.
const FILE_LIMIT: u64 = 1 << 30;

/// A text, or a pair of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextInput {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
}

impl TextInput {
    /// A single text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), pair: None }
    }
}

/// Reads a file of texts in their order. A `.tsv` has a header with a column `sentence` or `text`: fields are separated by
/// tabs alone and quotes are literal. Any other file has one text a line; an empty line is an empty text.
///
/// # Errors
/// [`ReportError::Inputs`] for a file that cannot be read or that has no such column, or a row without it.
pub fn read(path: &Path) -> Result<Vec<TextInput>, ReportError> {
    let text = read_text(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let is_table = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let inputs = if is_table { column(text) } else { Ok(text.lines().map(TextInput::new).collect()) };
    let failed = |reason: String| ReportError::Inputs { path: path.to_path_buf(), reason };
    let inputs = inputs.map_err(failed)?;
    if inputs.is_empty() { Err(failed("it holds no text".into())) } else { Ok(inputs) }
}

/// The whole of a file of texts, its length checked first.
pub(super) fn read_text(path: &Path) -> Result<String, ReportError> {
    let failed = |reason: String| ReportError::Inputs { path: path.to_path_buf(), reason };
    let length = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
    if length > FILE_LIMIT {
        return Err(failed(format!("{length} bytes are more than the limit of {FILE_LIMIT}")));
    }
    let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(bytes)
        .map_err(|e| failed(format!("byte {} is not UTF-8: convert the file", e.utf8_error().valid_up_to())))
}

fn column(text: &str) -> Result<Vec<TextInput>, String> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let index = ["sentence", "text"].iter().find_map(|name| header.iter().position(|h| h.trim() == *name)).ok_or_else(
        || format!("its header names no column `sentence` or `text`, but {}", header.join(", ").escape_debug()),
    )?;
    let row = |(i, line): (usize, &str)| {
        let field = line.split('\t').nth(index).ok_or_else(|| format!("line {} has no field {}", i + 2, index + 1))?;
        Ok(TextInput::new(field))
    };
    // A blank line, as editors leave at the end, is no row.
    lines.enumerate().filter(|(_, line)| !line.is_empty()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, content: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        read(&path).map(|v| v.into_iter().map(|t| t.text).collect()).map_err(|e| e.to_string())
    }

    #[test]
    fn lines_keep_order_and_empty_ones() {
        assert_eq!(read_as("a.txt", b"b\n\na \"q\"\t1\r\n").unwrap(), ["b", "", "a \"q\"\t1"]);
        assert_eq!(read_as("a.txt", "\u{feff}ä".as_bytes()).unwrap(), ["ä"]);
    }

    #[test]
    fn a_table_splits_at_tabs_only() {
        let table = b"id\tsentence\tlabel\n1\ta, \"b c\t0\n\n2\t'd'\t1\n";
        assert_eq!(read_as("a.tsv", table).unwrap(), ["a, \"b c", "'d'"]);
        assert_eq!(read_as("A.TSV", b"text\r\nx\r\n").unwrap(), ["x"]);
    }

    #[test]
    fn bad_files_are_one_sentence() {
        let message = |name, content: &[u8]| read_as(name, content).unwrap_err();
        assert!(message("a.tsv", b"a\tb\nc\td\n").contains("no column `sentence` or `text`"));
        assert!(message("a.tsv", b"a\ttext\nc\n").contains("line 2 has no field 2"));
        assert!(message("a.tsv", b"text\n").contains("holds no text"));
        assert!(message("a.txt", b"").contains("holds no text"));
        assert!(message("a.txt", b"ab\xff").contains("byte 2 is not UTF-8"));
        assert!(read(Path::new("/absent/file.txt")).unwrap_err().to_string().starts_with("input file /absent"));
    }
}
