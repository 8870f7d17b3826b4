//! Running the statements: transactions, the ledger, cancellation, and where in the
//! author's text an error belongs.

use serde_json::Value;
use tokio::sync::mpsc::unbounded_channel;

use super::{Sql, Transaction};
use crate::action::StepContext;
use crate::action::effect::{Effect, cancellable, cancelled, show};
use crate::action::expect::{Expectations, Observed, Prepared, RowWatch};
use crate::outcome::{Aftermath, Column, ErrorKind, StepError, StepResult};
use crate::source::Span;
use crate::sql::{BoundStatement, Kind, SqlText};
use crate::target::{Access, Executed, LedgerMode, RowSink, Session, SessionSettings, Statement, TargetError};
use crate::text::table::plain_value;
use crate::text::{count, cut};
use crate::yaml::span_within;

pub(super) async fn run(sql: &Sql, context: &StepContext) -> Result<StepResult, StepError> {
    let connection = context.connection(sql.fields.connection.as_ref().map(|name| name.value.as_str()))?;
    let prepared = sql.expectations().map(|expectations| expectations.prepare(&context.values)).transpose()?;
    let work = Work {
        sql,
        context,
        connection,
        statements: sql.statements()?,
        binds: binds(sql.statements()?, context)?,
        prepared,
        ledger: sql.keeps_ledger() && sql.throws().is_none() && context.targets.ledger_mode(connection)? == LedgerMode::Target,
    };
    let mut session = work.effect().connect(&settings(sql, context)?).await?;
    let (sender, notices) = unbounded_channel();
    session.forward_notices(sender);
    let (outcome, ()) = tokio::join!(work.run(session), show(notices, context));
    outcome
}

/// All values, before anything runs: a missing one must not be noticed halfway.
fn binds(statements: &[BoundStatement], context: &StepContext) -> Result<Vec<Vec<Value>>, StepError> {
    let values = |statement: &BoundStatement| statement.expressions.iter().map(|expression| context.values.evaluate(expression)).collect();
    Ok(statements.iter().map(values).collect::<Result<_, _>>()?)
}

fn settings(sql: &Sql, context: &StepContext) -> Result<SessionSettings, StepError> {
    let mut settings = context.session.clone();
    if let Some(timeout) = &sql.fields.lock_timeout {
        settings.lock_timeout = Some(context.values.setting(timeout)?.0);
    }
    if let Some(timeout) = &sql.fields.statement_timeout {
        settings.statement_timeout = Some(context.values.setting(timeout)?.0);
    }
    Ok(settings)
}

/// One run of the action.
struct Work<'a> {
    sql: &'a Sql,
    context: &'a StepContext,
    connection: &'a str,
    statements: &'a [BoundStatement],
    binds: Vec<Vec<Value>>,
    prepared: Option<Prepared<'a>>,
    ledger: bool,
}

/// What the statements have done so far.
struct Progress<'a> {
    rows_affected: u64,
    /// The last result that had columns.
    rows: RowWatch<'a>,
    columns: Vec<Column>,
}

impl<'a> Work<'a> {
    fn effect(&self) -> Effect<'a> {
        Effect { context: self.context, connection: self.connection, ledger: self.ledger }
    }

    async fn run(&self, mut session: Session) -> Result<StepResult, StepError> {
        match (self.sql.writes, self.sql.transaction()) {
            (false, _) => self.query(&mut session).await,
            (true, Transaction::Single) => self.in_transaction(&mut session).await,
            (true, Transaction::None) => self.one_by_one(&mut session).await,
        }
    }

    /// Reads; nothing is ever left behind.
    async fn query(&self, session: &mut Session) -> Result<StepResult, StepError> {
        let mut progress = self.nothing_yet();
        let outcome = self.read(session, &mut progress).await;
        let outcome = self.judged(outcome, &progress);
        outcome.map_err(|error| error.aftermath(Aftermath::Unchanged))
    }

    async fn read(&self, session: &mut Session, progress: &mut Progress<'a>) -> Result<(), StepError> {
        if self.statements.len() == 1 {
            return self.statement(session, 0, Some(self.sql.isolation()), progress).await;
        }
        session.begin(Access::ReadOnly, self.sql.isolation()).await?;
        let outcome = self.all(session, progress).await;
        session.rollback().await;
        outcome
    }

    /// Writes everything or nothing, together with its proof.
    async fn in_transaction(&self, session: &mut Session) -> Result<StepResult, StepError> {
        if let Some(result) = self.effect().earlier(session).await? {
            return Ok(result);
        }
        session.begin(Access::ReadWrite, self.sql.isolation()).await?;
        let mut progress = self.nothing_yet();
        let outcome = self.all(session, &mut progress).await;
        let result = match self.judged(outcome, &progress) {
            Ok(result) if self.sql.throws().is_none() => result,
            other => {
                session.rollback().await;
                return other;
            }
        };
        if let Err(error) = self.effect().record(session, &result).await {
            session.rollback().await;
            return Err(error.into());
        }
        match session.commit().await {
            Ok(()) => Ok(result),
            Err(TargetError::CommitUnknown { pid, .. }) if self.ledger => self.effect().resolve(pid, result).await,
            Err(error) => Err(self.placed(error, self.statements.len().saturating_sub(1))),
        }
    }

    /// Every statement commits by itself.
    async fn one_by_one(&self, session: &mut Session) -> Result<StepResult, StepError> {
        let mut progress = self.nothing_yet();
        let mut done = 0;
        let mut outcome = Ok(());
        for index in 0..self.statements.len() {
            outcome = self.statement(session, index, None, &mut progress).await.map_err(|error| self.left_behind(error, index));
            if outcome.is_err() {
                break;
            }
            done += 1;
        }
        let judged = self.judged(outcome, &progress);
        judged.map_err(|error| if done == self.statements.len() { error.aftermath(Aftermath::Partial) } else { error })
    }

    /// What a failed statement outside of a transaction means for the world.
    fn left_behind(&self, error: StepError, index: usize) -> StepError {
        if error.aftermath == Aftermath::Unknown {
            return error;
        }
        let statement = &self.statements[index].statement;
        let begun_nothing = error.code.is_none() && error.kind == ErrorKind::Cancelled;
        let whole = statement.transactional || begun_nothing;
        let mut error = error.aftermath(if index == 0 && whole { Aftermath::Unchanged } else { Aftermath::Partial });
        if matches!(statement.kind, Kind::CreateIndex { concurrently: true } | Kind::Reindex { concurrently: true }) {
            error.hints.push(
                "A failed build leaves an INVALID index behind: drop it with DROP INDEX CONCURRENTLY before the next attempt.".into(),
            );
        }
        if index > 0 {
            error = error.fact("in place", format!("the first {} of {} statements", index, self.statements.len()));
        }
        error
    }

    fn nothing_yet(&self) -> Progress<'a> {
        Progress { rows_affected: 0, rows: self.watch(), columns: Vec::new() }
    }

    fn watch(&self) -> RowWatch<'a> {
        RowWatch::new(self.sql.sample(), self.sql.expectations(), &self.context.values)
    }

    async fn all(&self, session: &mut Session, progress: &mut Progress<'a>) -> Result<(), StepError> {
        for index in 0..self.statements.len() {
            self.statement(session, index, None, progress).await?;
        }
        Ok(())
    }

    /// Runs one statement; `read`: in a read-only transaction of its own.
    async fn statement(
        &self,
        session: &mut Session,
        index: usize,
        read: Option<Option<crate::target::Isolation>>,
        progress: &mut Progress<'a>,
    ) -> Result<(), StepError> {
        if self.context.cancel.is_cancelled() {
            return Err(cancelled());
        }
        let bound = &self.statements[index];
        if self.statements.len() > 1 {
            self.context.progress(format!("statement {} of {}: {}", index + 1, self.statements.len(), bound.statement.kind), None);
        }
        let statement = Statement { text: &bound.text, binds: &self.binds[index], writes: counts_rows(&bound.statement.kind) };
        let canceller = session.canceller();
        let mut watch = self.watch();
        let mut sink = |columns: &[Column], row: Vec<Value>| watch.row(columns, row);
        let rows: RowSink<'_> = &mut sink;
        let executed: Executed = match read {
            Some(isolation) => cancellable(&canceller, &self.context.cancel, session.read(&statement, isolation, rows)).await,
            None => cancellable(&canceller, &self.context.cancel, session.execute(&statement, rows)).await,
        }
        .map_err(|error| self.placed(error, index))?;
        progress.rows_affected += executed.rows_affected;
        if !executed.columns.is_empty() {
            progress.rows = watch;
            progress.columns = executed.columns;
        }
        Ok(())
    }

    /// The result, if everything ran and is as expected.
    fn judged(&self, outcome: Result<(), StepError>, progress: &Progress<'_>) -> Result<StepResult, StepError> {
        if let Some(code) = self.sql.throws() {
            return self.thrown(outcome, code);
        }
        outcome?;
        let mut result = self.result(progress);
        let Some(prepared) = &self.prepared else { return Ok(result) };
        let observed = Observed { rows: &progress.rows, columns: &progress.columns, rows_affected: progress.rows_affected };
        match prepared.judge(observed) {
            Ok(findings) => {
                result.findings = findings;
                Ok(result)
            }
            Err(failure) => {
                let span =
                    failure.span.or_else(|| self.sql.fields.expect.as_ref().map(|expect| expect.span)).unwrap_or_else(|| self.sql.span());
                Err(failure.error.at(self.context.sources.location(span)).with_result(result))
            }
        }
    }

    fn thrown(&self, outcome: Result<(), StepError>, expected: &str) -> Result<StepResult, StepError> {
        let span = self.sql.fields.expect.as_ref().map_or_else(|| self.sql.span(), |expect| expect.span);
        match outcome {
            Ok(()) => Err(StepError::new(ErrorKind::Expectation, format!("expected an error of SQLSTATE {expected}, but everything ran"))
                .at(self.context.sources.location(span))),
            Err(error) => match &error.code {
                Some(code) if error.kind != ErrorKind::Connection && code.starts_with(expected) => {
                    let summary = format!("refused as expected: {code} {}", error.message);
                    Ok(StepResult { summary, value: Some(Value::String(code.clone())), ..StepResult::default() })
                }
                _ => Err(error.fact("expected", format!("an error of SQLSTATE {expected}"))),
            },
        }
    }

    fn result(&self, progress: &Progress<'_>) -> StepResult {
        let has_rows = !progress.columns.is_empty();
        let mut result = StepResult {
            value: progress.rows.first.clone(),
            columns: progress.columns.clone(),
            rows: progress.rows.rows.clone(),
            row_count: has_rows.then_some(progress.rows.count),
            rows_affected: self.sql.writes.then_some(progress.rows_affected),
            ..StepResult::default()
        };
        result.summary = self.summary(&result);
        result
    }

    /// The observed value in a few words.
    fn summary(&self, result: &StepResult) -> String {
        let kinds = || self.statements.iter().map(|statement| &statement.statement.kind);
        // Only `CREATE TABLE … AS` writes rows, and its kind does not tell.
        let changes = kinds().any(|kind| counts_rows(kind) && *kind != Kind::CreateTable) || result.rows_affected > Some(0);
        match (&result.value, result.row_count) {
            _ if self.sql.writes && changes => format!("{} affected", count(result.rows_affected.unwrap_or_default(), "row")),
            (Some(value), Some(1)) if result.columns.len() == 1 || self.expects(|it| it.value.is_some()) => plain_value(value),
            (Some(_), Some(1)) if !self.expects(|it| it.empty.is_some() || it.rows.is_some()) => row_in_words(result),
            (_, Some(rows)) => count(rows, "row"),
            _ => kinds().next_back().map(ToString::to_string).unwrap_or_default(),
        }
    }

    fn expects(&self, what: impl FnOnce(&Expectations) -> bool) -> bool {
        self.sql.expectations().is_some_and(what)
    }

    /// A target's error with its place in the author's text.
    fn placed(&self, error: TargetError, index: usize) -> StepError {
        let statement = &self.statements[index];
        let offset = match &error {
            TargetError::Sql(error) => match (error.position, error.bind) {
                (Some(position), _) => statement.origin_of_character(position),
                (None, Some(bind)) => statement.placeholder(bind),
                (None, None) => statement.range.start,
            },
            TargetError::Bind { index: Some(bind), .. } => statement.placeholder(*bind),
            _ => statement.range.start,
        };
        let mut error = StepError::from(error);
        if let Some(text) = self.sql.text() {
            error = error.at(self.context.sources.location(self.span(text, offset)));
        }
        if self.statements.len() > 1 {
            error = error.fact("statement", format!("{} of {}: {}", index + 1, self.statements.len(), statement.statement.kind));
        }
        error
    }

    fn span(&self, text: &SqlText, offset: usize) -> Span {
        let length = text.written[offset..].chars().next().map_or(0, char::len_utf8);
        span_within(&self.context.sources, text.written.span, &text.written, offset..offset + length)
    }
}

impl Sql {
    fn throws(&self) -> Option<&str> {
        self.expectations().and_then(|expectations| expectations.throws.as_ref()).map(|code| code.value.as_str())
    }
}

/// The only row as `name value, name value`, as far as it fits into a line.
fn row_in_words(result: &StepResult) -> String {
    const WIDEST_VALUE: usize = 40;
    const WIDEST: usize = 100;
    let cells = result.columns.iter().zip(result.rows.first().into_iter().flatten());
    let words: Vec<String> = cells.map(|(column, value)| format!("{} {}", column.name, cut(&plain_value(value), WIDEST_VALUE))).collect();
    // Without the row itself, because the author keeps no sample, its number is all there is.
    if words.is_empty() { count(1, "row") } else { cut(&words.join(", "), WIDEST) }
}

/// Whether the server's count is one of rows written.
fn counts_rows(kind: &Kind) -> bool {
    matches!(kind, Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Copy | Kind::CreateTable)
}
