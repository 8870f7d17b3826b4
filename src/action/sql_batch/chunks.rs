//! Where the batches stand, kept in the target database beside the ledger.
//!
//! `batch` holds one row for a step, `chunk` one for each part of its rows. A batch's
//! transaction moves its chunk's cursor, so rows and cursor are never apart. Workers
//! lock rows of `chunk` only: two never work on one part, and a backend left behind by
//! a lost connection keeps its part until it is gone.

use serde::{Deserialize, Serialize};

use super::statements::{Range, Spec, own_table};
use super::table::{Table, Way};
use super::talk::{Talk, number, text, whole};
use crate::target::{Kind, TargetError, text_literal};

/// Parts for each worker: enough that all have work until shortly before the end.
const CHUNKS_A_WORKER: u64 = 8;
/// Transactions that go over a window.
pub(super) const SHARES: u8 = 8;

/// A step's rows in `batch` and `chunk`.
#[derive(Debug, Clone)]
pub(super) struct Books {
    kind: Kind,
    batch: String,
    chunk: String,
    /// Literals.
    run: String,
    step: String,
}

/// How a step that was begun stands.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub fingerprint: String,
    pub way: Way,
    /// Rows to be changed, counted before the first batch.
    pub total: u64,
    /// 0, and one more for each sweep.
    pub phase: u64,
}

/// A part in the hands of a worker, for one transaction.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    pub number: u64,
    phase: u64,
    last: String,
    cursor: Option<String>,
}

/// Where a chunk stands after a batch.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub range: Range,
    /// The size it was measured out by: for one share of a window, the window's.
    pub size: u64,
    cursor: String,
    /// The batch is the chunk's last one, and perhaps a short one.
    pub ends: bool,
}

impl Books {
    pub(super) fn new(kind: Kind, run: &str, step: &str) -> Self {
        Self { kind, batch: own_table(kind, "batch"), chunk: own_table(kind, "chunk"), run: text_literal(run), step: text_literal(step) }
    }

    /// Creates the tables; the ledger, and with it the schema, is there already.
    pub(super) async fn ensure(&self, talk: &mut Talk) -> Result<(), TargetError> {
        let create = [
            format!(
                "CREATE TABLE IF NOT EXISTS {} (run text, step text, fingerprint text NOT NULL, physical int NOT NULL, \
                 total bigint NOT NULL, phase bigint NOT NULL DEFAULT 0, PRIMARY KEY (run, step))",
                self.batch
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {} (run text, step text, phase bigint, number bigint, first text, last text NOT NULL, \
                 cursor text, changed bigint NOT NULL DEFAULT 0, done int NOT NULL DEFAULT 0, PRIMARY KEY (run, step, phase, number))",
                self.chunk
            ),
        ];
        for statement in create {
            // Somebody else may create it in the same moment.
            if let Err(error) = talk.change(&statement).await
                && !matches!(&error, TargetError::Sql(error) if matches!(error.code.as_str(), "23505" | "42P07" | "42710"))
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn mine(&self) -> String {
        format!("run = {} AND step = {}", self.run, self.step)
    }

    pub(super) async fn standing(&self, talk: &mut Talk) -> Result<Option<Standing>, TargetError> {
        let rows = talk.look(&format!("SELECT fingerprint, physical, total, phase FROM {} WHERE {}", self.batch, self.mine())).await?;
        Ok(rows.first().map(|row| Standing {
            fingerprint: text(row.first()).unwrap_or_default(),
            way: Way::from_code(row.get(1).map(whole).unwrap_or_default()),
            total: row.get(2).map(whole).unwrap_or_default(),
            phase: row.get(3).map(whole).unwrap_or_default(),
        }))
    }

    /// Notes the step itself, in the transaction that lays out its first phase.
    pub(super) async fn open(&self, talk: &mut Talk, standing: &Standing) -> Result<(), TargetError> {
        let values =
            format!("{}, {}, {}, {}, {}", self.run, self.step, text_literal(&standing.fingerprint), standing.way.code(), standing.total);
        talk.change(&format!("INSERT INTO {} (run, step, fingerprint, physical, total) VALUES ({values})", self.batch)).await.map(drop)
    }

    /// Cuts the rows that are to be changed now into chunks; gives their number. Their last
    /// keys are fixed here: rows that come later are for a sweep.
    pub(super) async fn lay_out(&self, talk: &mut Talk, spec: &Spec, table: &Table, phase: u64, workers: u32) -> Result<u64, TargetError> {
        let total = number(&talk.rows(&format!("SELECT count(*) {}", spec.source(table))).await?);
        let parts = (CHUNKS_A_WORKER * u64::from(workers)).min(total.max(1));
        let bounds = if phase == 0 && table.way == Way::Pages {
            let pages = table.pages.max(1);
            (1..=parts).map(|part| (pages * part / parts).to_string()).collect()
        } else {
            self.last_keys(talk, spec, table, total, parts).await?
        };
        let mut first = "NULL".to_owned();
        for (number, last) in bounds.iter().enumerate() {
            let last = text_literal(last);
            if first != last {
                let values = format!("{}, {}, {phase}, {number}, {first}, {last}", self.run, self.step);
                talk.change(&format!("INSERT INTO {} (run, step, phase, number, first, last) VALUES ({values})", self.chunk)).await?;
            }
            first = last;
        }
        talk.change(&format!("UPDATE {} SET phase = {phase} WHERE {}", self.batch, self.mine())).await?;
        Ok(total)
    }

    async fn last_keys(&self, talk: &mut Talk, spec: &Spec, table: &Table, total: u64, parts: u64) -> Result<Vec<String>, TargetError> {
        let size = total.div_ceil(parts).max(1);
        let sql = format!(
            "SELECT {} FROM (SELECT {}, row_number() OVER (ORDER BY {}) AS runbook_n {}) AS numbered \
             WHERE runbook_n % {size} = 0 OR runbook_n = {total} ORDER BY runbook_n",
            spec.key_json(table, "numbered"),
            spec.key_columns(table),
            spec.key_list(table),
            spec.source(table)
        );
        Ok(talk.rows(&sql).await?.iter().filter_map(|row| text(row.first())).collect())
    }

    /// A chunk nobody has, the worker's own if there is more of it. `None`: others have the rest.
    pub(super) async fn claim(&self, talk: &mut Talk, phase: u64, own: Option<u64>) -> Result<Option<Chunk>, TargetError> {
        let preferred = own.map_or(String::new(), |own| format!("(number = {own}) DESC, "));
        let lock = if self.kind == Kind::Postgres { " FOR UPDATE SKIP LOCKED" } else { "" };
        let sql = format!(
            "SELECT number, last, coalesce(cursor, first) FROM {} WHERE {} AND phase = {phase} AND done = 0 \
             ORDER BY {preferred}number LIMIT 1{lock}",
            self.chunk,
            self.mine()
        );
        Ok(talk.rows(&sql).await?.first().map(|row| Chunk {
            number: row.first().map(whole).unwrap_or_default(),
            phase,
            last: text(row.get(1)).unwrap_or_default(),
            cursor: text(row.get(2)),
        }))
    }

    pub(super) async fn is_open(&self, talk: &mut Talk, phase: u64) -> Result<bool, TargetError> {
        let sql = format!("SELECT count(*) FROM {} WHERE {} AND phase = {phase} AND done = 0", self.chunk, self.mine());
        Ok(number(&talk.look(&sql).await?) > 0)
    }

    /// Rows changed so far, in all phases or one.
    pub(super) async fn changed(&self, talk: &mut Talk, phase: Option<u64>) -> Result<u64, TargetError> {
        let phase = phase.map_or(String::new(), |phase| format!(" AND phase = {phase}"));
        Ok(number(&talk.look(&format!("SELECT coalesce(sum(changed), 0) FROM {} WHERE {}{phase}", self.chunk, self.mine())).await?))
    }

    /// Moves the cursor, in the transaction of the batch, provided that the run lock is held.
    pub(super) async fn advance(&self, talk: &mut Talk, chunk: &Chunk, step: &Step, changed: u64) -> Result<bool, TargetError> {
        let sql = format!(
            "UPDATE {} SET cursor = {}, changed = changed + {changed}, done = {} WHERE {} AND phase = {} AND number = {} AND {}",
            self.chunk,
            text_literal(&step.cursor),
            u8::from(step.ends),
            self.mine(),
            chunk.phase,
            chunk.number,
            talk.session.lock_condition()?
        );
        Ok(talk.change(&sql).await? == 1)
    }

    /// Forgets the step's books; the ledger knows that it is done.
    pub(super) async fn close(&self, talk: &mut Talk, spec: &Spec) -> Result<(), TargetError> {
        for table in [&self.chunk, &self.batch] {
            talk.change(&format!("DELETE FROM {table} WHERE {}", self.mine())).await?;
        }
        if spec.worklist.is_some() {
            talk.change(&format!("DROP TABLE IF EXISTS {}", spec.worklist_table())).await?;
        }
        Ok(())
    }
}

impl Chunk {
    /// The next batch by key. It counts the keys and not the rows that `where` finds, because
    /// the index alone tells them; where few are found, many keys take no time and the size grows.
    pub(super) async fn next_keys(&self, talk: &mut Talk, spec: &Spec, table: &Table, size: u64) -> Result<Step, TargetError> {
        let behind = self.cursor.as_deref().map(parse_key);
        let last = parse_key(&self.last);
        let end = end_of(talk, spec, table, (behind.as_deref(), &last), size).await?;
        let cursor = serde_json::to_string(&end).unwrap_or_default();
        Ok(Step { ends: end == last, range: Range::Keys { behind, last: end }, size, cursor })
    }

    /// The next share of a window of keys, or the first one of a new window of `size` keys. A
    /// window that turns out too large is gone over in parts.
    pub(super) async fn next_share(&self, talk: &mut Talk, spec: &Spec, table: &Table, size: u64) -> Result<Step, TargetError> {
        let last = parse_key(&self.last);
        let mut window = match self.cursor.as_deref().map(Window::parse) {
            Some(window) if window.share < SHARES => window,
            before => {
                let behind = before.map(|window| window.last);
                let end = end_of(talk, spec, table, (behind.as_deref(), &last), size).await?;
                Window { behind, last: end, share: 0, within: None, size }
            }
        };
        let behind = window.within.take().or_else(|| window.behind.clone());
        let too_large = size < window.size / 2;
        let size = if too_large { size } else { window.size };
        let end = match too_large {
            true => end_of(talk, spec, table, (behind.as_deref(), &window.last), size).await?,
            false => window.last.clone(),
        };
        let range = Range::Share { behind, last: end.clone(), share: window.share };
        window.done_up_to(end);
        let ends = window.share == SHARES && window.last == last;
        Ok(Step { range, size, cursor: serde_json::to_string(&window).unwrap_or_default(), ends })
    }

    /// The next pass over a window of pages, or the first one over a new window of `pages`.
    pub(super) fn next_pages(&self, pages: u64) -> Step {
        let last: u64 = self.last.parse().unwrap_or_default();
        // Before the first batch the cursor is the page where the chunk begins.
        let (first, end, share) = match self.cursor.as_deref().map(parse_place) {
            Some([first, end, share]) if share + 1 < u64::from(SHARES) => (first, end, share + 1),
            Some([_, begins, _]) => (begins, (begins + pages.max(1)).min(last), 0),
            None => (0, pages.max(1).min(last), 0),
        };
        let ends = end >= last && share + 1 == u64::from(SHARES);
        let share_number = u8::try_from(share).unwrap_or(SHARES - 1);
        let range = Range::Pages { first, end, share: share_number };
        Step { range, size: end.saturating_sub(first), cursor: format!("[{first},{end},{share}]"), ends }
    }
}

/// The last of the next `size` keys behind the first one, up to and with the second.
async fn end_of(
    talk: &mut Talk,
    spec: &Spec,
    table: &Table,
    (behind, last): (Option<&[String]>, &[String]),
    size: u64,
) -> Result<Vec<String>, TargetError> {
    let sql = format!(
        "SELECT {} FROM (SELECT {} {} ORDER BY {} LIMIT 1 OFFSET {}) AS picked",
        spec.key_json(table, "picked"),
        spec.key_columns(table),
        spec.keys(table, &Range::Keys { behind: behind.map(<[String]>::to_vec), last: last.to_vec() }),
        spec.key_list(table),
        size.saturating_sub(1)
    );
    let found = talk.rows(&sql).await?.first().and_then(|row| text(row.first()));
    Ok(found.map_or_else(|| last.to_vec(), |found| parse_key(&found)))
}

/// A cursor in a window of keys that is gone over share by share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    behind: Option<Vec<String>>,
    last: Vec<String>,
    /// The next one; [`SHARES`]: all are done.
    share: u8,
    /// Up to where the next one is done already.
    within: Option<Vec<String>>,
    size: u64,
}

impl Window {
    /// A bare key, where a chunk begins, stands for a window that ends there.
    fn parse(text: &str) -> Self {
        let ended = || Self { behind: None, last: parse_key(text), share: SHARES, within: None, size: 0 };
        serde_json::from_str(text).unwrap_or_else(|_| ended())
    }

    fn done_up_to(&mut self, end: Vec<String>) {
        if end == self.last {
            self.share += 1;
        } else {
            self.within = Some(end);
        }
    }
}

fn parse_key(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_default()
}

/// `[first, end, share]` of the pass that is done; a bare page stands for a window that ends there.
fn parse_place(text: &str) -> [u64; 3] {
    let done = u64::from(SHARES) - 1;
    serde_json::from_str(text).unwrap_or_else(|_| [0, text.parse().unwrap_or_default(), done])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_keys_is_done_share_by_share_and_in_parts() {
        let key = |key: &str| vec![key.to_owned()];
        let mut window = Window { behind: None, last: key("9"), share: 6, within: None, size: 9 };
        window.done_up_to(key("4"));
        assert_eq!((window.share, window.within.clone()), (6, Some(key("4"))));
        window = Window::parse(&serde_json::to_string(&window).unwrap());
        window.within = None;
        window.done_up_to(key("9"));
        window.done_up_to(key("9"));
        assert_eq!((window.share, &window.within), (SHARES, &None));
        assert_eq!(Window::parse(r#"["9"]"#), Window { size: 0, ..window });
    }

    #[test]
    fn a_chunk_of_pages_is_visited_in_windows_of_eight_passes() {
        let mut chunk = Chunk { number: 1, phase: 0, last: "25".into(), cursor: Some("10".into()) };
        let mut seen = Vec::new();
        loop {
            let step = chunk.next_pages(10);
            let Range::Pages { first, end, share } = step.range else { panic!("pages") };
            seen.push((first, end, share));
            chunk.cursor = Some(step.cursor);
            if step.ends {
                break;
            }
        }
        let expected: Vec<_> =
            [(10, 20), (20, 25)].into_iter().flat_map(|(first, end)| (0..8).map(move |share| (first, end, share))).collect();
        assert_eq!(seen, expected);
    }
}
