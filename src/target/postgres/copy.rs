//! `COPY … FROM STDIN`: a stream of rows into a table, without holding it in memory.

use sqlx::postgres::PgConnection;
use tokio::sync::mpsc::Receiver;

use crate::target::spec::CopyChunk;

/// Sends the chunks until their end. A source that stops without saying [`CopyChunk::End`]
/// has failed: then nothing is kept, and the answer is `None`.
pub async fn stream(connection: &mut PgConnection, statement: &str, chunks: &mut Receiver<CopyChunk>) -> Result<Option<u64>, sqlx::Error> {
    let mut copy = connection.copy_in_raw(statement).await?;
    while let Some(chunk) = chunks.recv().await {
        match chunk {
            CopyChunk::Data(bytes) => _ = copy.send(bytes).await?,
            CopyChunk::End => return copy.finish().await.map(Some),
        }
    }
    copy.abort("the source of the rows stopped").await?;
    Ok(None)
}
