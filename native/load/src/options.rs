//! What a run is told.

use serde::{Deserialize, Serialize};

/// See `jotd-loadgen --help`. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Options {
    /// host:port of each server; connections are spread over them.
    pub endpoints: Vec<String>,
    /// put, txn, range, count, list, range-stream, watch, keepalive, mixed, kube, or fill.
    pub scenario: String,
    /// Connections.
    pub conns: usize,
    /// Units of work under way at once. With a rate: at most.
    pub concurrency: usize,
    /// Units of work a second, begun on time whatever became of those before; 0: each worker
    /// begins its next when its last is done.
    pub rate: f64,
    /// How long to measure.
    pub duration_s: f64,
    /// How long to run before measuring.
    pub warmup_s: f64,
    /// Different keys.
    pub keys: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// list: objects a page; 0: all in one answer.
    pub limit: u64,
    /// watch, kube: streams that watch.
    pub watchers: usize,
    /// kube: nodes.
    pub nodes: usize,
    /// All keys begin with it.
    pub prefix: String,
    /// range, count, list, range-stream, mixed, kube: write the keys first.
    pub fill: bool,
    /// Threads that make the load.
    pub threads: usize,
    /// Report progress on stderr, one line of JSON a second.
    pub progress: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            endpoints: vec!["127.0.0.1:2379".to_owned()],
            scenario: "put".to_owned(),
            conns: 8,
            concurrency: 64,
            rate: 0.0,
            duration_s: 5.0,
            warmup_s: 1.0,
            keys: 10_000,
            value_bytes: 1024,
            limit: 0,
            watchers: 100,
            nodes: 1000,
            prefix: "/registry/pods/load/".to_owned(),
            fill: true,
            threads: 1,
            progress: false,
        }
    }
}

impl Options {
    /// Reads `--name=value` arguments.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let defaults = serde_json::to_value(Options::default()).map_err(|why| why.to_string())?;
        let mut given = serde_json::Map::new();
        for argument in arguments {
            let (name, value) = argument
                .strip_prefix("--")
                .and_then(|rest| rest.split_once('=').or(Some((rest, "true"))))
                .ok_or_else(|| format!("{argument:?} is not of the form --name=value"))?;
            let value = match defaults.get(name) {
                None => return Err(format!("there is no option --{name}")),
                Some(serde_json::Value::Array(_)) => value.split(',').collect(),
                Some(serde_json::Value::String(_)) => value.into(),
                Some(_) => serde_json::from_str(value).map_err(|why| format!("--{name}: {why}"))?,
            };
            given.insert(name.to_owned(), value);
        }
        serde_json::from_value(given.into()).map_err(|why| why.to_string())
    }

    /// Reads a JSON object; what it does not name has its default.
    pub fn from_json(text: &str) -> Result<Options, String> {
        serde_json::from_str(text).map_err(|why| why.to_string())
    }
}
