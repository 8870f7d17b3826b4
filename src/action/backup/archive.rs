//! What is in a dump, by its own account: the table of contents of an archive, or the
//! comments with which SQL text names each object.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::contents::Table;
use super::manifest::{Manifest, SequenceValue, schema_and_name, unquoted};

/// The types of objects, as `pg_dump` of PostgreSQL 14 to 18 names them. Only those of several
/// words need to be known, for names may be of several words too.
const LONG_TYPES: &[&str] = &[
    "ACCESS METHOD",
    "CHECK CONSTRAINT",
    "DATABASE PROPERTIES",
    "DEFAULT ACL",
    "EVENT TRIGGER",
    "FK CONSTRAINT",
    "FOREIGN DATA WRAPPER",
    "FOREIGN TABLE",
    "INDEX ATTACH",
    "LARGE OBJECT",
    "BLOB METADATA",
    "MATERIALIZED VIEW",
    "MATERIALIZED VIEW DATA",
    "OPERATOR CLASS",
    "OPERATOR FAMILY",
    "PROCEDURAL LANGUAGE",
    "PUBLICATION TABLE",
    "PUBLICATION TABLES IN SCHEMA",
    "ROW SECURITY",
    "SECURITY LABEL",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "SHELL TYPE",
    "STATISTICS DATA",
    "SUBSCRIPTION TABLE",
    "TABLE ATTACH",
    "TABLE DATA",
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER",
    "TEXT SEARCH TEMPLATE",
    "USER MAPPING",
];

/// Entries that create nothing, or whose number depends on how the dump was made.
const NO_OBJECTS: &[&str] = &[
    "BLOB",
    "BLOB METADATA",
    "BLOBS",
    "DATABASE",
    "DATABASE PROPERTIES",
    "ENCODING",
    "MATERIALIZED VIEW DATA",
    "SCHEMA",
    "SEARCHPATH",
    "SEQUENCE SET",
    "STATISTICS DATA",
    "STDSTRINGS",
    "TABLE DATA",
];

/// The entries of a dump, each as `TYPE SCHEMA NAME OWNER`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    entries: Vec<String>,
    /// The same with what `pg_restore --use-list` wants in front; of SQL text there is none.
    lines: Vec<String>,
}

impl Listing {
    /// Reads what `pg_restore --list` prints.
    pub fn of_archive(text: &str) -> Self {
        let lines: Vec<String> = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty()).map(str::to_owned).collect();
        // 3323; 0 16391 TABLE DATA public racks postgres
        let entry = |line: &String| line.splitn(4, ' ').nth(3).map(str::to_owned);
        Self { entries: lines.iter().filter_map(entry).collect(), lines }
    }

    /// Reads the comments in SQL text, and not what looks like one among a table's rows.
    pub fn of_text(path: &Path) -> io::Result<Self> {
        let mut entries = Vec::new();
        let mut among_rows = false;
        for_each_line(path, |line| match line {
            b"\\." => among_rows = false,
            _ if among_rows => {}
            _ if line.starts_with(b"COPY ") && line.ends_with(b" FROM stdin;") => among_rows = true,
            _ => entries.extend(std::str::from_utf8(line).ok().and_then(named_in_comment)),
        })?;
        Ok(Self { entries, lines: Vec::new() })
    }

    /// Those of `tables` whose rows are in it.
    pub fn with_rows(&self, tables: Vec<Table>) -> Vec<Table> {
        let entries: HashSet<&str> = self.entries.iter().map(String::as_str).collect();
        let is_in = |table: &Table| entries.contains(format!("TABLE DATA {} {} {}", table.schema, table.name, table.owner).as_str());
        tables.into_iter().filter(is_in).collect()
    }

    /// Entries of a type, without it.
    pub fn entries<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a str> {
        self.entries.iter().map(|entry| split_type(entry)).filter(move |(kind, _)| *kind == wanted).map(|(_, rest)| rest)
    }

    /// How many there are of a type.
    pub fn count(&self, wanted: &str) -> u64 {
        self.entries(wanted).count() as u64
    }

    /// The lines of a type, as `pg_restore --use-list` reads them.
    pub fn lines(&self, wanted: &str) -> String {
        let fits = |(entry, _): &(&String, &String)| split_type(entry).0 == wanted;
        self.entries.iter().zip(&self.lines).filter(fits).map(|(_, line)| format!("{line}\n")).collect()
    }

    /// All lines, as `pg_restore --use-list` reads them, but those of foreign keys to tables
    /// that are not in the dump.
    pub fn without_open_references(&self, manifest: &Manifest) -> String {
        // As in `FK CONSTRAINT public loads loads_driver_fkey owner`.
        let open: Vec<String> = manifest
            .open_references
            .iter()
            .map(|open| {
                let (schema, table) = schema_and_name(&open.table);
                format!("FK CONSTRAINT {} {} {} ", unquoted(schema), unquoted(table), open.constraint)
            })
            .collect();
        let is_open = |entry: &str| open.iter().any(|open| entry.starts_with(open.as_str()));
        self.entries.iter().zip(&self.lines).filter(|(entry, _)| !is_open(entry)).map(|(_, line)| format!("{line}\n")).collect()
    }

    /// How many objects of each type it creates.
    pub fn objects(&self) -> BTreeMap<String, u64> {
        let mut objects = BTreeMap::new();
        for (kind, _) in self.entries.iter().map(|entry| split_type(entry)) {
            if !NO_OBJECTS.contains(&kind) {
                *objects.entry(kind.to_owned()).or_default() += 1;
            }
        }
        objects
    }
}

/// Whether SQL text ends as `pg_dump` ends it: cut off, it looks like any other.
pub fn is_complete_text(path: &Path) -> io::Result<bool> {
    const TAIL: u64 = 512;
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).contains("-- PostgreSQL database dump complete"))
}

/// The sequences that SQL text sets.
pub fn sequences(lines: impl Iterator<Item = impl AsRef<str>>) -> BTreeMap<String, SequenceValue> {
    lines.filter_map(|line| set_value(line.as_ref())).collect()
}

/// The sequences that a file of SQL text sets.
pub fn sequences_of_text(path: &Path) -> io::Result<BTreeMap<String, SequenceValue>> {
    let mut found = BTreeMap::new();
    for_each_line(path, |line| found.extend(std::str::from_utf8(line).ok().and_then(set_value)))?;
    Ok(found)
}

/// `SELECT pg_catalog.setval('public.racks_id_seq', 42, true);`
fn set_value(line: &str) -> Option<(String, SequenceValue)> {
    let arguments = line.strip_prefix("SELECT pg_catalog.setval('")?.strip_suffix(");")?;
    let (name, numbers) = arguments.rsplit_once("', ")?;
    let (value, called) = numbers.split_once(", ")?;
    Some((name.replace("''", "'"), SequenceValue { value: value.parse().ok()?, called: called == "true" }))
}

/// `-- Data for Name: racks; Type: TABLE DATA; Schema: public; Owner: postgres`
fn named_in_comment(line: &str) -> Option<String> {
    let text = line.strip_prefix("-- Name: ").or_else(|| line.strip_prefix("-- Data for Name: "))?;
    let (name, text) = text.split_once("; Type: ")?;
    let (kind, text) = text.split_once("; Schema: ")?;
    let (schema, owner) = text.split_once("; Owner: ")?;
    let owner = owner.split_once("; Tablespace: ").map_or(owner, |(owner, _)| owner);
    Some(format!("{kind} {schema} {name} {owner}"))
}

fn split_type(entry: &str) -> (&str, &str) {
    let long = LONG_TYPES.iter().filter(|kind| entry.strip_prefix(**kind).is_some_and(|rest| rest.starts_with(' ')));
    let length = long.map(|kind| kind.len()).max().unwrap_or_else(|| entry.find(' ').unwrap_or(entry.len()));
    (&entry[..length], entry[length..].trim_start())
}

fn for_each_line(path: &Path, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(256 * 1024, File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(line.strip_suffix(b"\n").unwrap_or(&line));
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
;
; Archive created at 2026-02-03 04:05:06 UTC
;     dbname: app
215; 1259 16391 TABLE public racks postgres
216; 1259 16395 SEQUENCE public racks_id_seq postgres
3323; 0 16391 TABLE DATA public my racks postgres
3330; 0 0 SEQUENCE SET public racks_id_seq postgres
3171; 2606 16399 FK CONSTRAINT public racks racks_session_fkey postgres
";

    #[test]
    fn an_archives_contents_are_read() {
        let listing = Listing::of_archive(LIST);
        let table = |name: &str| Table { schema: "public".into(), name: name.into(), owner: "postgres".into(), sql: String::new() };
        assert_eq!(listing.with_rows(vec![table("racks"), table("my racks")]), [table("my racks")]);
        let objects: Vec<(String, u64)> = listing.objects().into_iter().collect();
        assert_eq!(objects, [("FK CONSTRAINT".into(), 1), ("SEQUENCE".into(), 1), ("TABLE".into(), 1)]);
        assert_eq!(listing.entries("FK CONSTRAINT").collect::<Vec<_>>(), ["public racks racks_session_fkey postgres"]);
        assert_eq!(listing.lines("SEQUENCE SET"), "3330; 0 0 SEQUENCE SET public racks_id_seq postgres\n");
    }

    #[test]
    fn comments_among_rows_name_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.sql");
        let comment = "-- Data for Name: users; Type: TABLE DATA; Schema: public; Owner: me";
        std::fs::write(
            &file,
            format!("-- Name: racks; Type: TABLE; Schema: app; Owner: me; Tablespace: fast\nCOPY x (y) FROM stdin;\n{comment}\n\\.\n"),
        )
        .unwrap();
        assert_eq!(Listing::of_text(&file).unwrap().entries, ["TABLE app racks me"]);
        std::fs::write(&file, comment).unwrap();
        assert_eq!(Listing::of_text(&file).unwrap().entries, ["TABLE DATA public users me"]);
    }

    #[test]
    fn text_that_was_cut_off_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.sql");
        std::fs::write(&file, format!("{}--\n-- PostgreSQL database dump complete\n--\n\n", "x\n".repeat(1000))).unwrap();
        assert!(is_complete_text(&file).unwrap());
        std::fs::write(&file, "CREATE TABLE a (").unwrap();
        assert!(!is_complete_text(&file).unwrap());
    }

    #[test]
    fn sequences_are_read() {
        let found = sequences(["SELECT pg_catalog.setval('public.\"it''s\"', 42, true);", "SELECT 1;"].iter());
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("public.\"it's\"".into(), SequenceValue { value: 42, called: true })]);
    }
}
