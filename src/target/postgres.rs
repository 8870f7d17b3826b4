//! Under construction: signatures first.
#![allow(unused_variables, missing_docs)]
use super::*;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

#[derive(Debug)]
pub struct Database {
    spec: ConnectionSpec,
}
#[derive(Debug)]
pub struct Session;
#[derive(Debug, Clone)]
pub struct Canceller;

impl Database {
    pub fn spec(&self) -> &ConnectionSpec {
        &self.spec
    }
    pub async fn identity(&self) -> Result<Identity, TargetError> {
        unimplemented!()
    }
    pub async fn lock(&self, name: &str, holder: &LockHolder, patience: Duration) -> Result<Option<HolderDescription>, TargetError> {
        unimplemented!()
    }
    pub async fn stamp(&self, environment: &str) -> Result<(), TargetError> {
        unimplemented!()
    }
    pub async fn read_stamp(&self) -> Result<Stamp, TargetError> {
        unimplemented!()
    }
    pub fn new(run: &str, spec: ConnectionSpec, variables: Variables) -> Self {
        Self { spec }
    }
    pub async fn session(this: &Arc<Self>, step: &str, settings: &SessionSettings) -> Result<Session, TargetError> {
        unimplemented!()
    }
    pub async fn earlier_backend(&self, step: &str) -> Result<Option<Backend>, TargetError> {
        unimplemented!()
    }
    pub async fn terminate(&self, pid: i32, patience: Duration) -> Result<bool, TargetError> {
        unimplemented!()
    }
    pub async fn resolve_commit(this: &Arc<Self>, step: &str, pid: i32, patience: Duration) -> Result<Option<Value>, TargetError> {
        unimplemented!()
    }
    pub fn libpq_environment(&self, step: &str) -> Result<LibpqEnvironment, TargetError> {
        unimplemented!()
    }
    pub async fn check_lock(&self) -> Result<(), TargetError> {
        unimplemented!()
    }
    pub async fn release_lock(&self) {
        unimplemented!()
    }
}
impl Session {
    pub fn identity(&self) -> &Identity {
        unimplemented!()
    }
    pub fn pid(&self) -> i32 {
        unimplemented!()
    }
    pub fn forward_notices(&mut self, receiver: UnboundedSender<Notice>) {
        unimplemented!()
    }
    pub fn canceller(&self) -> super::Canceller {
        unimplemented!()
    }
    pub async fn read(
        &mut self,
        statement: &Statement<'_>,
        isolation: Option<Isolation>,
        rows: RowSink<'_>,
    ) -> Result<Executed, TargetError> {
        unimplemented!()
    }
    pub async fn begin(&mut self, access: Access, isolation: Option<Isolation>) -> Result<(), TargetError> {
        unimplemented!()
    }
    pub async fn execute(&mut self, statement: &Statement<'_>, rows: RowSink<'_>) -> Result<Executed, TargetError> {
        unimplemented!()
    }
    pub async fn commit(&mut self) -> Result<(), TargetError> {
        unimplemented!()
    }
    pub async fn rollback(&mut self) {
        unimplemented!()
    }
    pub async fn ensure_ledger(&mut self) -> Result<(), TargetError> {
        unimplemented!()
    }
    pub async fn ledger_find(&mut self, step: &str) -> Result<Option<Value>, TargetError> {
        unimplemented!()
    }
    pub async fn ledger_record(&mut self, step: &str, result: &Value) -> Result<(), TargetError> {
        unimplemented!()
    }
}
impl Canceller {
    pub async fn cancel(&self) -> Result<(), TargetError> {
        unimplemented!()
    }
}
