//! Questions that are asked before their answers are needed, all at once: over a network each takes a journey of its own.
//!
//! An answer is taken once, by the call that asks the same; one that nobody takes is dropped with the storage. A question
//! whose task was lost is asked anew.

use super::client::Bucket;
use super::error::S3Error;
use super::get::Read;
use crate::storage::{Ahead, ObjectInfo, StorageKey};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

enum Answer {
    Read(Result<Read, S3Error>),
    List(Result<Vec<ObjectInfo>, S3Error>),
}

/// What is on its way.
#[derive(Default)]
pub(super) struct Asked(Mutex<HashMap<Ahead, JoinHandle<Answer>>>);

impl Asked {
    /// Asks all of it. What was asked before and not taken is asked again: the newest answer is the one to have.
    pub fn ask(&self, runtime: &Runtime, bucket: &Arc<Bucket>, questions: Vec<Ahead>) {
        let mut on_their_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for question in questions {
            let (bucket, asked) = (bucket.clone(), question.clone());
            let task = runtime.spawn(async move {
                match asked {
                    Ahead::Get(key, limit) => Answer::Read(bucket.read(key.as_str(), limit).await),
                    Ahead::List(prefix) => Answer::List(bucket.list_shown(&prefix).await),
                }
            });
            if let Some(older) = on_their_way.insert(question, task) {
                older.abort();
            }
        }
    }

    async fn take(&self, question: Ahead) -> Option<Answer> {
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&question);
        task?.await.ok()
    }

    pub async fn read(&self, bucket: &Bucket, key: &StorageKey, limit: u64) -> Result<Read, S3Error> {
        match self.take(Ahead::Get(key.clone(), limit)).await {
            Some(Answer::Read(read)) => read,
            _ => bucket.read(key.as_str(), limit).await,
        }
    }

    pub async fn list(&self, bucket: &Bucket, prefix: &str) -> Result<Vec<ObjectInfo>, S3Error> {
        match self.take(Ahead::List(prefix.to_owned())).await {
            Some(Answer::List(listed)) => listed,
            _ => bucket.list_shown(prefix).await,
        }
    }
}
