//! Labelled texts: tables with a text, perhaps a second text, and perhaps a label or a score in each row.
//!
//! | file | how it is read |
//! |---|---|
//! | `.csv` without a tab in its first line | fields between commas, quotes as in RFC 4180 |
//! | `.csv` with tabs, `.tsv` | fields between tabs; quotes are ordinary characters, as in the files of GLUE and the STS benchmark |
//! | any other | one text a line; with given columns, fields between tabs |
//!
//! Columns are given by name or by index from 0, or found: by the names that GLUE's headers have, or, without a header, by
//! the forms of the STS benchmark, of CoLA, and of a text and a number.

use std::path::{Path, PathBuf};

use super::{ReportError, inputs};

pub use super::inputs::TextInput;

/// Names of a single text's column, in the order in which they are looked for.
const TEXT: [&str; 8] = ["sentence", "text", "sentence1", "text1", "question", "review", "content", "query"];

/// Names of two columns that make a pair, looked for before [`TEXT`].
const PAIRS: [(&str, &str); 8] = [
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("question", "answer"),
    ("#1 string", "#2 string"),
];

/// Names of a label's or a score's column.
const TARGET: [&str; 9] =
    ["gold_label", "label", "labels", "score", "similarity_score", "is_duplicate", "quality", "similarity", "target"];

/// A column, by its name in the header or by its index from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// Name, in any case of letters.
    Name(String),
    /// Index.
    Index(usize),
}

impl Column {
    fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.into()), Self::Index)
    }

    fn find(&self, header: Option<&[String]>) -> Result<usize, String> {
        match (self, header) {
            (Self::Index(i), _) => Ok(*i),
            (Self::Name(name), Some(header)) => position(header, name)
                .ok_or_else(|| format!("line 1 names no column `{name}`, but {}", header.join(", ").escape_debug())),
            (Self::Name(name), None) => {
                Err(format!("there is no header with a column `{name}`: give its index from 0"))
            }
        }
    }
}

/// Which columns to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The text.
    pub text: Column,
    /// The second text of a pair.
    pub pair: Option<Column>,
    /// The label or score.
    pub target: Option<Column>,
}

impl std::str::FromStr for Columns {
    type Err = String;

    /// `text=NAME|INDEX[,text_pair=..][,label=..]`, or columns alone: a text; a text and a label; a text, a second text and a
    /// label.
    fn from_str(given: &str) -> Result<Self, String> {
        let form = || {
            "write text=NAME,label=NAME with text_pair=NAME between them for pairs, or such names or indices from 0 alone"
                .to_string()
        };
        let parts: Vec<&str> = given.split(',').map(str::trim).collect();
        if parts.iter().any(|p| p.is_empty()) {
            return Err(form());
        }
        if parts.iter().all(|p| !p.contains('=')) {
            let column = |i: usize| parts.get(i).map(|p| Column::parse(p));
            let (pair, target) = match parts.len() {
                1 => (None, None),
                2 => (None, column(1)),
                3 => (column(1), column(2)),
                _ => return Err(form()),
            };
            return Ok(Self { text: Column::parse(parts[0]), pair, target });
        }
        let (mut text, mut pair, mut target) = (None, None, None);
        for part in parts {
            let (key, value) = part.split_once('=').filter(|(_, v)| !v.is_empty()).ok_or_else(form)?;
            let place = match key {
                "text" => &mut text,
                "text_pair" | "pair" => &mut pair,
                "label" | "score" => &mut target,
                _ => return Err(format!("`{key}` is none of text, text_pair, label and score")),
            };
            if place.replace(Column::parse(value)).is_some() {
                return Err(format!("`{key}` is given twice"));
            }
        }
        Ok(Self { text: text.ok_or("the text's column is missing: text=NAME")?, pair, target })
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Line of the file, from 1.
    pub line: usize,
    /// Its text or texts.
    pub input: TextInput,
    /// Its label or score, as written; empty fields are none.
    pub target: Option<String>,
}

/// The rows of a file, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// In the order of the file.
    pub rows: Vec<Row>,
    /// Where text, second text and label were found, in words.
    pub columns: String,
}

impl Dataset {
    /// What is wrong with a row, as an error that names file and line.
    pub fn fault(&self, row: &Row, reason: impl std::fmt::Display) -> ReportError {
        ReportError::Inputs { path: self.path.clone(), reason: format!("line {}: {reason}", row.line) }
    }

    /// Whether every row has a label or score; an error names the first that has none where others have.
    ///
    /// # Errors
    /// [`ReportError::Inputs`].
    pub fn is_labelled(&self) -> Result<bool, ReportError> {
        if self.rows.iter().all(|r| r.target.is_none()) {
            return Ok(false);
        }
        match self.rows.iter().find(|r| r.target.is_none()) {
            Some(row) => Err(self.fault(row, "its label is empty")),
            None => Ok(true),
        }
    }

    /// Whether every row is a pair.
    pub fn is_paired(&self) -> bool {
        self.rows.iter().all(|r| r.input.pair.is_some())
    }
}

/// Reads a file.
///
/// # Errors
/// [`ReportError::Inputs`], one sentence with file, line and column, for a file that cannot be read, columns that are not
/// there or cannot be found, or no row at all.
pub fn read(path: &Path, columns: Option<&Columns>) -> Result<Dataset, ReportError> {
    let text = inputs::read_text(path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let failed = |reason: String| ReportError::Inputs { path: path.to_path_buf(), reason };
    let extension = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
    let commas = extension("csv") && !text.lines().next().unwrap_or_default().contains('\t');
    let (rows, columns) = if columns.is_none() && !extension("csv") && !extension("tsv") {
        let row = |(i, line)| Row { line: i + 1, input: TextInput::new(line), target: None };
        (text.lines().enumerate().map(row).collect(), "one text a line".to_string())
    } else {
        let records = if commas { comma_records(text).map_err(failed)? } else { tab_records(text) };
        table(&records, columns).map_err(failed)?
    };
    if rows.is_empty() {
        return Err(failed("it holds no row".into()));
    }
    Ok(Dataset { path: path.to_path_buf(), rows, columns })
}

/// A line number from 1 and the fields.
type Record = (usize, Vec<String>);

fn tab_records(text: &str) -> Vec<Record> {
    // A blank line, as editors leave at the end, is no row.
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(i, line)| (i + 1, line.split('\t').map(String::from).collect())).collect()
}

/// RFC 4180: a quoted field may hold commas, line ends and doubled quotes. A quote inside an unquoted field is literal.
fn comma_records(text: &str) -> Result<Vec<Record>, String> {
    let (mut records, mut fields, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut start, mut quoted, mut was_quoted) = (1, 1, false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            ',' if !quoted => {
                fields.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' => {
                line += 1;
                if quoted {
                    field.push(c);
                    continue;
                }
                fields.push(std::mem::take(&mut field));
                let record = std::mem::take(&mut fields);
                if record.len() > 1 || was_quoted || !record[0].is_empty() {
                    records.push((start, record));
                }
                (start, was_quoted) = (line, false);
            }
            _ => field.push(c),
        }
    }
    if quoted {
        return Err(format!("line {start}: a quote is never closed"));
    }
    if !fields.is_empty() || !field.is_empty() || was_quoted {
        fields.push(field);
        records.push((start, fields));
    }
    Ok(records)
}

/// Indices of the columns.
#[derive(Clone, Copy)]
struct Found {
    text: usize,
    pair: Option<usize>,
    target: Option<usize>,
}

fn table(records: &[Record], columns: Option<&Columns>) -> Result<(Vec<Row>, String), String> {
    let Some((_, first)) = records.first() else { return Ok((Vec::new(), String::new())) };
    let (found, header) = match columns {
        Some(columns) => given(records, first, columns)?,
        None => match by_names(first) {
            Some(found) => (found, true),
            None => (by_form(first)?, false),
        },
    };
    let name = |i: usize| match first.get(i).filter(|_| header) {
        Some(name) => format!("`{name}`"),
        None => i.to_string(),
    };
    let row = |(line, fields): &Record| -> Result<Row, String> {
        let field = |i: usize| {
            let absent = || format!("line {line} has no column {}: its fields are {}", name(i), fields.len());
            fields.get(i).cloned().ok_or_else(absent)
        };
        let target = found.target.map(field).transpose()?.map(|t| t.trim().to_string());
        Ok(Row {
            line: *line,
            input: TextInput { text: field(found.text)?, pair: found.pair.map(field).transpose()? },
            target: target.filter(|t| !t.is_empty()),
        })
    };
    let rows = records.iter().skip(usize::from(header)).map(row).collect::<Result<_, _>>()?;
    let mut words = format!("text {}", name(found.text));
    if let Some(pair) = found.pair {
        words += &format!(", text_pair {}", name(pair));
    }
    if let Some(target) = found.target {
        words += &format!(", label {}", name(target));
    }
    Ok((rows, words))
}

/// Columns as given, and whether the first record is a header: always where one is named; with indices alone where the first
/// record has a name of a header, or no number in a column of numbers.
fn given(records: &[Record], first: &[String], columns: &Columns) -> Result<(Found, bool), String> {
    let all = [Some(&columns.text), columns.pair.as_ref(), columns.target.as_ref()];
    let named = all.iter().flatten().any(|c| matches!(c, Column::Name(_)));
    let numeric = |record: Option<&Record>| match (&columns.target, record) {
        (Some(Column::Index(i)), Some((_, fields))) => fields.get(*i).is_some_and(|f| is_number(f)),
        _ => false,
    };
    let header = named || by_names(first).is_some() || (!numeric(records.first()) && numeric(records.get(1)));
    let find = |column: &Column| column.find(header.then_some(first));
    let found = Found {
        text: find(&columns.text)?,
        pair: columns.pair.as_ref().map(find).transpose()?,
        target: columns.target.as_ref().map(find).transpose()?,
    };
    Ok((found, header))
}

fn by_names(header: &[String]) -> Option<Found> {
    let target = TARGET.iter().find_map(|name| position(header, name));
    let pair = PAIRS.iter().find_map(|(a, b)| position(header, a).zip(position(header, b)));
    let (text, pair) = match pair {
        Some((text, pair)) => (text, Some(pair)),
        None => (TEXT.iter().find_map(|name| position(header, name))?, None),
    };
    Some(Found { text, pair, target })
}

/// Known forms of files without a header.
fn by_form(first: &[String]) -> Result<Found, String> {
    let number = |i: usize| first.get(i).is_some_and(|f| is_number(f));
    match first.len() {
        1 => Ok(Found { text: 0, pair: None, target: None }),
        2 if number(1) => Ok(Found { text: 0, pair: None, target: Some(1) }),
        2 if number(0) => Ok(Found { text: 1, pair: None, target: Some(0) }),
        3 if number(2) => Ok(Found { text: 0, pair: Some(1), target: Some(2) }),
        // CoLA: source, label, the author's mark, sentence.
        4 if number(1) && ["", "*"].contains(&first[2].trim()) => Ok(Found { text: 3, pair: None, target: Some(1) }),
        // The STS benchmark: genre, file, year, number, score, two sentences, perhaps their sources.
        7.. if number(4) && !number(5) && !number(6) => Ok(Found { text: 5, pair: Some(6), target: Some(4) }),
        _ => Err(format!(
            "line 1 names no column of texts ({}): say which ones by --columns text=NAME,label=NAME or by indices from 0",
            first.iter().map(|f| cut(f)).collect::<Vec<_>>().join(", ").escape_debug()
        )),
    }
}

fn position(header: &[String], name: &str) -> Option<usize> {
    header.iter().position(|h| h.trim().eq_ignore_ascii_case(name))
}

fn is_number(text: &str) -> bool {
    text.trim().parse::<f64>().is_ok_and(f64::is_finite)
}

/// The start of a long field.
fn cut(field: &str) -> String {
    let short: String = field.chars().take(24).collect();
    if short.len() < field.len() { format!("{short}...") } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, content: &str, columns: Option<&str>) -> Result<Dataset, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let columns = columns.map(|c| c.parse::<Columns>()).transpose()?;
        read(&path, columns.as_ref()).map_err(|e| e.to_string())
    }

    /// Line, text, second text and label of each row.
    fn rows(set: &Dataset) -> Vec<(usize, &str, Option<&str>, Option<&str>)> {
        set.rows.iter().map(|r| (r.line, &*r.input.text, r.input.pair.as_deref(), r.target.as_deref())).collect()
    }

    #[test]
    fn glue_headers_are_known() {
        let sst2 = read_as("a.tsv", "sentence\tlabel\na \"b , c\t1\n\nd\t0\n", None).unwrap();
        assert_eq!(rows(&sst2), [(2, "a \"b , c", None, Some("1")), (4, "d", None, Some("0"))]);
        assert_eq!(sst2.columns, "text `sentence`, label `label`");
        assert!(sst2.is_labelled().unwrap() && !sst2.is_paired());
        let rte = read_as("a.tsv", "sentence1\tsentence2\tlabel\tidx\nx\ty\tentailment\t7\n", None).unwrap();
        assert_eq!(rows(&rte), [(2, "x", Some("y"), Some("entailment"))]);
        let qnli = read_as("a.tsv", "index\tquestion\tsentence\tlabel\n0\tq\ts\t1\n", None).unwrap();
        assert_eq!(rows(&qnli), [(2, "q", Some("s"), Some("1"))]);
        let mrpc = read_as("a.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tx\ty\n", None).unwrap();
        assert_eq!(rows(&mrpc), [(2, "x", Some("y"), Some("1"))]);
        let unlabelled = read_as("a.tsv", "index\tsentence\r\n0\tx\r\n", None).unwrap();
        assert_eq!(rows(&unlabelled), [(2, "x", None, None)]);
        assert!(!unlabelled.is_labelled().unwrap());
    }

    #[test]
    fn files_without_a_header_are_known_by_their_form() {
        let sts = "main\tMSRvid\t2012\t0\t4.75\tone \"x\ttwo\nmain\tMSRvid\t2012\t1\t3\ta\tb\tsource\tsource\n";
        let sts = read_as("sts.csv", sts, None).unwrap();
        assert_eq!(rows(&sts), [(1, "one \"x", Some("two"), Some("4.75")), (2, "a", Some("b"), Some("3"))]);
        let cola = read_as("c.tsv", "gj04\t1\t\tx y.\ngj04\t0\t*\tz\n", None).unwrap();
        assert_eq!(rows(&cola), [(1, "x y.", None, Some("1")), (2, "z", None, Some("0"))]);
        assert_eq!(rows(&read_as("d.tsv", "0\tx\n", None).unwrap()), [(1, "x", None, Some("0"))]);
        assert_eq!(rows(&read_as("d.csv", "x,2.5\n", None).unwrap()), [(1, "x", None, Some("2.5"))]);
        assert_eq!(rows(&read_as("d.txt", "x\ty\n\nz\n", None).unwrap()).len(), 3);
    }

    #[test]
    fn columns_by_name_and_index() {
        let table = "id\tText\tclass\n7\tx\tgood\n";
        for columns in ["text=text,label=class", "Text,class", "1,2", "text=1,label=class", "label=2,text=TEXT"] {
            let found = read_as("a.tsv", table, Some(columns));
            assert_eq!(rows(&found.unwrap()), [(2, "x", None, Some("good"))], "{columns}");
        }
        // Unknown names are a header where the label's column has numbers from the second line on.
        let numbers = read_as("a.tsv", "a\tb\nx\t1\n", Some("0,1")).unwrap();
        assert_eq!(rows(&numbers), [(2, "x", None, Some("1"))]);
        let none = read_as("a.tsv", "a\t0\nx\t1\n", Some("0,1")).unwrap();
        assert_eq!(none.rows.len(), 2);
        let pair = read_as("a.txt", "x\ty\t2\n", Some("1,0,2")).unwrap();
        assert_eq!(rows(&pair), [(1, "y", Some("x"), Some("2"))]);
    }

    #[test]
    fn commas_and_quotes() {
        let csv = "text,label\r\n\"a, \"\"b\"\"\nc\",1\r\nd \"e\" f,0\n\"\",1\n";
        let set = read_as("a.csv", csv, None).unwrap();
        let expected =
            [(2, "a, \"b\"\nc", None, Some("1")), (4, "d \"e\" f", None, Some("0")), (5, "", None, Some("1"))];
        assert_eq!(rows(&set), expected);
        assert_eq!(rows(&read_as("a.csv", "text,label\nx,1", None).unwrap()), [(2, "x", None, Some("1"))]);
        assert!(read_as("a.csv", "text,label\nx,1\n\"y,0\n", None).unwrap_err().contains("line 3: a quote is never"));
    }

    #[test]
    fn bad_files_are_one_sentence_with_line_and_column() {
        let message = |content: &str, columns: Option<&str>| read_as("a.tsv", content, columns).unwrap_err();
        let missing = message("sentence\tlabel\nx\t1\ny\n", None);
        assert!(missing.contains("a.tsv: line 3 has no column `label`: its fields are 1"), "{missing}");
        assert!(message("a\tb\nc\td\n", None).contains("line 1 names no column of texts (a, b): say which"));
        assert!(message("a\tb\n", Some("text=c,label=b")).contains("line 1 names no column `c`, but a, b"));
        assert!(message("x\t1\ny\t2\n", Some("0,7")).contains("line 1 has no column 7: its fields are 2"));
        for empty in ["", "\n", "sentence\tlabel\n"] {
            assert!(message(empty, None).contains("it holds no row"), "{empty:?}");
        }
        let holes = read_as("a.tsv", "sentence\tlabel\nx\t1\ny\t\n", None).unwrap();
        assert!(holes.is_labelled().unwrap_err().to_string().contains("line 3: its label is empty"));
        let absent = read(Path::new("/absent/a.tsv"), None).unwrap_err().to_string();
        assert!(absent.starts_with("input file /absent/a.tsv"), "{absent}");
    }

    #[test]
    fn bad_columns_are_refused() {
        for wrong in ["", "a,,b", "text=", "label=1", "text=a,text=b", "text=a,colour=b", "a,b,c,d", "text=a,b"] {
            assert!(wrong.parse::<Columns>().is_err(), "{wrong}");
        }
    }
}
