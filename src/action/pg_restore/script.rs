//! The text of a dump, statement by statement and row by row, never whole in memory.
//!
//! Responsible for what of a dump is sent, passed over and refused. It talks to no database.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use crate::sql::{Copied, Fed, Feed, Kind, classify, copied};

/// Rows that travel together, in bytes.
const CHUNK: usize = 256 * 1024;
/// What `pg_dump` writes last.
const TRAILER: &str = "-- PostgreSQL database dump complete";
/// The schema of what runbook itself keeps in a database.
const OWN_SCHEMA: &str = "runbook";

/// A statement to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// It stands alone.
    Statement(Fed),
    /// It takes the rows that follow.
    Copy(Fed, Copied),
}

/// Why a text is not restored.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It holds what no dump needs.
    #[error("{message}")]
    Refused {
        /// From 1.
        line: u64,
        /// What stands there.
        message: String,
        /// Why that is not sent, or what to do.
        help: String,
    },
    /// It ends too early.
    #[error("it ends in the middle of {what}")]
    Cut {
        /// From 1.
        line: u64,
        /// A statement, or a table's rows.
        what: String,
    },
    /// Nobody wants the rest of it.
    #[error("stopped")]
    Stopped,
}

/// Reads a dump's text.
#[derive(Debug)]
pub struct Script<R> {
    input: R,
    feed: Feed,
    pending: VecDeque<Fed>,
    line: Vec<u8>,
    /// Whether the object at hand belongs to runbook itself.
    own: bool,
    /// The table whose rows come next, and the line they begin on.
    rows_of: Option<(String, u64)>,
    /// Where `BEGIN` stands that only large objects may follow.
    begun: Option<u64>,
    /// Something was created, so whatever is dropped from now on is not of a dump.
    created: bool,
    /// Whether the text ends as `pg_dump` ends it.
    pub complete: bool,
}

/// What is to be done with a statement.
enum Verdict {
    Send,
    Skip,
    Refuse(&'static str, &'static str),
}

impl<R: BufRead> Script<R> {
    /// From its beginning.
    pub fn new(input: R) -> Self {
        Self {
            input,
            feed: Feed::default(),
            pending: VecDeque::new(),
            line: Vec::new(),
            own: false,
            rows_of: None,
            begun: None,
            created: false,
            complete: false,
        }
    }

    /// The next statement. Behind a [`Part::Copy`] its rows have to be read first.
    pub fn next(&mut self) -> Result<Option<Part>, ScriptError> {
        loop {
            while let Some(statement) = self.pending.pop_front() {
                if let Some(part) = self.judged(statement)? {
                    return Ok(Some(part));
                }
            }
            if !self.read_line()? {
                return self.ended().map(|()| None);
            }
            self.take_line()?;
        }
    }

    /// Adds rows to `chunk`, as many as should travel together; `false`: those were the last.
    pub fn rows(&mut self, chunk: &mut Vec<u8>) -> Result<bool, ScriptError> {
        while chunk.len() < CHUNK {
            let begin = chunk.len();
            if self.input.read_until(b'\n', chunk)? == 0 {
                let (table, line) = self.rows_of.take().unwrap_or_default();
                return Err(ScriptError::Cut { line, what: format!("the rows of {table}") });
            }
            self.feed.skip_lines(1);
            let line = &chunk[begin..];
            if line == b"\\.\n" || line == b"\\.\r\n" {
                chunk.truncate(begin);
                self.rows_of = None;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_line(&mut self) -> Result<bool, ScriptError> {
        self.line.clear();
        Ok(self.input.read_until(b'\n', &mut self.line)? > 0)
    }

    fn take_line(&mut self) -> Result<(), ScriptError> {
        let at = self.feed.line();
        let Ok(line) = std::str::from_utf8(&self.line) else {
            return Err(refused(at, "this is not UTF-8", ENCODING));
        };
        if !self.feed.is_open() {
            // psql's answer to dumps that smuggle in its commands; here there are none.
            if line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ") {
                self.feed.skip_lines(1);
                return Ok(());
            }
            if let Some(own) = belongs_to_runbook(line) {
                self.own = own;
            }
            self.complete |= line.trim_end() == TRAILER;
        }
        let fed = self.feed.push(line).map_err(|error| {
            let help = if error.problem.code == "psql-meta-command" { COMMAND.to_owned() } else { error.problem.help };
            ScriptError::Refused { line: error.line, message: error.problem.message, help }
        })?;
        if fed.len() > 1 && fed.iter().any(|statement| statement.copies) {
            return Err(refused(at, "COPY … FROM STDIN stands on a line with other statements", "a dump gives it a line of its own"));
        }
        self.pending.extend(fed);
        Ok(())
    }

    fn ended(&self) -> Result<(), ScriptError> {
        match self.begun {
            _ if self.feed.is_open() => Err(ScriptError::Cut { line: self.feed.line(), what: "a statement".into() }),
            Some(line) => Err(refused(line, "this transaction is never ended", TRANSACTION)),
            None => Ok(()),
        }
    }

    /// What is sent of a statement.
    fn judged(&mut self, statement: Fed) -> Result<Option<Part>, ScriptError> {
        if statement.copies {
            let copied = copied(&statement.text).unwrap_or_else(|| Copied { table: statement.text.clone(), columns: Vec::new() });
            self.rows_of = Some((copied.table.clone(), statement.line));
            if self.own || is_own(&copied.table) {
                self.pass_over_rows()?;
                return Ok(None);
            }
            return Ok(Some(Part::Copy(statement, copied)));
        }
        if self.own {
            return Ok(None);
        }
        match self.verdict(&statement) {
            Verdict::Send => Ok(Some(Part::Statement(statement))),
            Verdict::Skip => Ok(None),
            Verdict::Refuse(message, help) => Err(refused(statement.line, message, help)),
        }
    }

    fn pass_over_rows(&mut self) -> Result<(), ScriptError> {
        let mut chunk = Vec::new();
        while self.rows(&mut chunk)? {
            chunk.clear();
        }
        Ok(())
    }

    fn verdict(&mut self, statement: &Fed) -> Verdict {
        let text = statement.text.as_str();
        let classified = classify(text);
        let large_object = text.starts_with("SELECT pg_catalog.lo");
        match &classified.kind {
            // `pg_dump` gives each large object a transaction; ours is around everything.
            Kind::Begin if self.begun.is_none() && text.eq_ignore_ascii_case("begin") => {
                self.begun = Some(statement.line);
                Verdict::Skip
            }
            Kind::Commit if self.begun.is_some() => {
                self.begun = None;
                Verdict::Skip
            }
            _ if self.begun.is_some() && !large_object => Verdict::Refuse("a transaction begins before this", TRANSACTION),
            Kind::Set => set(text),
            Kind::Copy => {
                Verdict::Refuse("COPY with a file of the server", "a dump holds its rows itself; what this reads or writes is not in it")
            }
            kind if drops(kind, text) && !self.created => Verdict::Skip,
            kind if is_drop(kind) => {
                Verdict::Refuse("something is dropped after something was created", "a dump drops at its beginning only")
            }
            Kind::Other(label) if label.ends_with(" DATABASE") => Verdict::Refuse(
                "a dump made with --create names its database itself",
                "a step restores into the database of its connection; make the dump without --create",
            ),
            _ if classified.transaction_control => Verdict::Refuse("transactions are the engine's to begin and end", TRANSACTION),
            _ if !classified.transactional && !text.contains("connect = false") => {
                Verdict::Refuse("this can't run in a transaction", "a restore is one transaction, so that it happens wholly or not at all")
            }
            kind => {
                self.created |= matches!(kind, Kind::CreateTable)
                    || matches!(kind, Kind::Other(label) if label.starts_with("CREATE ") && !matches!(label.as_str(), "CREATE SCHEMA" | "CREATE EXTENSION"));
                Verdict::Send
            }
        }
    }
}

const COMMAND: &str = "psql would obey it; the text goes to the server over runbook's own connection, which knows no such commands. \
A dump needs none: look who put it there";
const TRANSACTION: &str = "a restore is one transaction of runbook's own, so that it happens wholly or not at all";
const ENCODING: &str = "make the dump with `pg_dump --encoding=UTF8`, or restore it with psql or pg_restore themselves";

fn refused(line: u64, message: &str, help: &str) -> ScriptError {
    ScriptError::Refused { line, message: message.into(), help: help.into() }
}

/// Settings: bounds are the step's business, and some must be as the text is read here.
fn set(text: &str) -> Verdict {
    let lower = text.to_ascii_lowercase();
    let mut words = lower.split([' ', '=', '\t', '\n']).filter(|word| !word.is_empty());
    let (verb, name, value) = (words.next(), words.next().unwrap_or_default(), words.next_back().unwrap_or_default());
    let value = value.trim_matches('\'');
    match name {
        _ if verb == Some("reset") => Verdict::Send,
        "statement_timeout" | "lock_timeout" | "idle_in_transaction_session_timeout" | "transaction_timeout" | "default_with_oids" => {
            Verdict::Skip
        }
        "client_encoding" if matches!(value, "utf8" | "unicode") => Verdict::Skip,
        "client_encoding" => Verdict::Refuse("the dump is not in UTF-8", ENCODING),
        "standard_conforming_strings" if value == "on" => Verdict::Skip,
        "standard_conforming_strings" => {
            Verdict::Refuse("backslashes would be escapes in all strings", "make the dump with a pg_dump of PostgreSQL 9.1 or newer")
        }
        "role" => Verdict::Refuse(SET_ROLE, USE_OWNER),
        "session" if lower.contains("authorization") => Verdict::Refuse(SET_ROLE, USE_OWNER),
        "transaction" | "local" => Verdict::Refuse("this reshapes the transaction", TRANSACTION),
        "session" => Verdict::Refuse("this reshapes all transactions of the session", TRANSACTION),
        _ => Verdict::Send,
    }
}

const SET_ROLE: &str = "the dump changes the role it is restored by";
const USE_OWNER: &str = "make it without --use-set-session-authorization and --role";

fn is_drop(kind: &Kind) -> bool {
    match kind {
        Kind::DropTable | Kind::DropIndex { .. } => true,
        Kind::Other(label) => label.starts_with("DROP "),
        _ => false,
    }
}

/// What `--clean` puts in front: what has to go is looked up in the target instead.
fn drops(kind: &Kind, text: &str) -> bool {
    let upper = || text.to_ascii_uppercase();
    is_drop(kind) || (*kind == Kind::AlterTable && [" DROP CONSTRAINT ", " DROP DEFAULT"].iter().any(|words| upper().contains(words)))
}

/// Whether the object that a comment announces is runbook's own; `None`: it announces none.
fn belongs_to_runbook(line: &str) -> Option<bool> {
    let text = line.strip_prefix("-- Name: ").or_else(|| line.strip_prefix("-- Data for Name: "))?;
    let (name, text) = text.split_once("; Type: ")?;
    let (kind, text) = text.split_once("; Schema: ")?;
    let schema = text.split_once("; ").map_or(text, |(schema, _)| schema);
    let schema_itself = schema == "-" && ((kind == "SCHEMA" && name == OWN_SCHEMA) || name == format!("SCHEMA {OWN_SCHEMA}"));
    Some(schema == OWN_SCHEMA || schema_itself)
}

fn is_own(table: &str) -> bool {
    table.split_once('.').is_some_and(|(schema, _)| schema == OWN_SCHEMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent of a text: statements, and rows in brackets; an error with its line.
    fn sent(text: &str) -> Vec<String> {
        let mut script = Script::new(text.as_bytes());
        let mut sent = Vec::new();
        loop {
            match script.next() {
                Ok(None) => return sent,
                Ok(Some(Part::Statement(fed))) => sent.push(fed.text),
                Ok(Some(Part::Copy(_, copied))) => {
                    let mut rows = Vec::new();
                    match script.rows(&mut rows) {
                        Ok(_) => sent.push(format!("{} [{}]", copied.table, String::from_utf8(rows).unwrap())),
                        Err(error) => return [sent, vec![told(&error)]].concat(),
                    }
                }
                Err(error) => return [sent, vec![told(&error)]].concat(),
            }
        }
    }

    fn told(error: &ScriptError) -> String {
        match error {
            ScriptError::Refused { line, .. } | ScriptError::Cut { line, .. } => format!("line {line}: {error}"),
            other => other.to_string(),
        }
    }

    #[test]
    fn rows_are_no_sql_whatever_they_hold() {
        let text = "COPY public.t (a) FROM stdin;\n\\! rm\n-- x; y\nSELECT 1;\n\\\\.\n\\.\n\nSELECT 2;\n";
        assert_eq!(sent(text), ["public.t [\\! rm\n-- x; y\nSELECT 1;\n\\\\.\n]", "SELECT 2"]);
        assert_eq!(sent("SELECT 1;\nCOPY t (a) FROM stdin;\n1\n2\n"), ["SELECT 1", "line 2: it ends in the middle of the rows of t"]);
        assert_eq!(sent("SELECT 1;\nCREATE TABLE a (\n b"), ["SELECT 1", "line 2: it ends in the middle of a statement"]);
    }

    #[test]
    fn what_is_runbooks_own_or_the_steps_business_is_passed_over() {
        let text = "\\restrict abc\nSET statement_timeout = 0;\nSET lock_timeout = 0;\nSET transaction_timeout = 0;\n\
            SET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\nSET row_security = off;\nDROP TABLE IF EXISTS public.t;\n\
            ALTER TABLE IF EXISTS ONLY public.t DROP CONSTRAINT IF EXISTS k;\n-- Name: runbook; Type: SCHEMA; Schema: -; Owner: me\n\
            CREATE SCHEMA runbook;\n-- Data for Name: ledger; Type: TABLE DATA; Schema: runbook; Owner: me\nCOPY runbook.ledger (run) FROM stdin;\nx\n\\.\n\
            -- Name: t; Type: TABLE; Schema: public; Owner: me\nCREATE TABLE public.t (a int);\n-- PostgreSQL database dump complete\n\\unrestrict abc\n";
        assert_eq!(sent(text), ["SET row_security = off", "CREATE TABLE public.t (a int)"]);
        let large = "BEGIN;\n\nSELECT pg_catalog.lo_open('1', 131072);\nSELECT pg_catalog.lowrite(0, '\\x61');\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\nSELECT 1;\n";
        assert_eq!(sent(large).len(), 4);
    }

    #[test]
    fn what_no_dump_holds_is_refused_with_its_line() {
        for (text, expected) in [
            ("SELECT 1;\n\\! rm -rf /\n", "line 2: `\\!` is a command of psql, not SQL"),
            ("\\connect other\n", "line 1: `\\connect` is a command of psql, not SQL"),
            ("COPY t FROM PROGRAM 'ls';\n", "line 1: COPY … PROGRAM runs a shell command on the database server"),
            ("COPY t FROM '/etc/passwd';\n", "line 1: COPY with a file of the server"),
            ("CREATE DATABASE x;\n", "line 1: a dump made with --create names its database itself"),
            ("BEGIN;\nCREATE TABLE a (b int);\nCOMMIT;\n", "line 2: a transaction begins before this"),
            ("COMMIT;\n", "line 1: transactions are the engine's to begin and end"),
            ("\nROLLBACK;\n", "line 2: transactions are the engine's to begin and end"),
            ("SET TRANSACTION READ ONLY;\n", "line 1: this reshapes the transaction"),
            ("SET SESSION AUTHORIZATION 'me';\n", "line 1: the dump changes the role it is restored by"),
            ("SET client_encoding = 'LATIN1';\n", "line 1: the dump is not in UTF-8"),
            ("CREATE TABLE a (b int);\nDROP TABLE c;\n", "line 2: something is dropped after something was created"),
            ("VACUUM;\n", "line 1: this can't run in a transaction"),
        ] {
            assert_eq!(sent(text).pop().as_deref(), Some(expected), "{text}");
        }
        for fine in ["SELECT '\n\\! ls\n';\n", "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$\n\\connect x;\nCOMMIT;\n$$;\n"] {
            assert_eq!(sent(fine).len(), 1, "{fine}");
            assert!(!sent(fine)[0].starts_with("line"), "{fine}");
        }
    }
}
