//! The promises of the configuration: all problems at once, no value in any report, one table.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::table::{Kind, SECTIONS};
use super::*;

fn read(text: &str) -> Result<Loaded, Report> {
    let surroundings = Surroundings { base_dir: Path::new("/nonexistent"), variable: &|_| None };
    Config::from_surroundings(text, "nullhop.toml", &surroundings)
}

fn report(text: &str) -> String {
    match read(text) {
        Ok(_) => panic!("expected problems"),
        Err(report) => report.to_string(),
    }
}

/// `text` beside an upstream, so that it is whole.
fn with_upstream(text: &str) -> String {
    format!("{text}\n[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n")
}

fn ok(text: &str) -> Loaded {
    read(&with_upstream(text)).unwrap_or_else(|report| panic!("{report}"))
}

/// The messages alone, in order.
fn messages(text: &str) -> Vec<String> {
    report(text).lines().filter_map(|line| line.strip_prefix("error: ")).map(str::to_owned).collect()
}

/// A folder that is gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nullhop-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn ten_mistakes_are_ten_problems() {
    let text = r#"# A file with ten mistakes
[runtime]
workers = 1000

[[listener]]
adress = "10.11.12.13:8443" # the office

[limits]
handshake_timeout = 5
head_bytes = "1KiB"

[drain]
grace = "10m"
deadline = "1m"

[metrics]
token = "s3cr3t-t0k3n"

[admin]
address = "0.0.0.0:9465"

[[upstream]]
name = "openai"
provider = "open-ai"

[[upstream]]
name = "openai"
provider = "compatible"
url = "https://user:pass@api.example.com"
"#;
    let expected = r#"nullhop.toml: 10 problems
error: `workers` in [runtime] must be an integer from 0 to 256
  --> nullhop.toml:3:11
   |
 3 | workers = 1000
   |           ^^^^

error: unknown key `adress` in [[listener]], did you mean `address`?
  --> nullhop.toml:6:1
   |
 6 | adress = "***"
   | ^^^^^^

error: `handshake_timeout` in [limits] must be a duration from 100ms to 1m, such as "250ms", "5s", "15m" or "1h", not an integer
  --> nullhop.toml:9:21
   |
 9 | handshake_timeout = 5
   |                     ^

error: `head_bytes` in [limits] must be a size from 8KiB to 256KiB: a number of bytes, or such as "64KiB" or "32MiB"
   --> nullhop.toml:10:14
    |
 10 | head_bytes = "***"
    |              ^^^^^

error: `deadline` in [drain] must not be below `grace`: both count from the signal
   --> nullhop.toml:14:12
    |
 14 | deadline = "***"
    |            ^^^^^

error: `token` in [metrics] is a secret and must not stand in this file
   --> nullhop.toml:17:9
    |
 17 | token = "***"
    |         ^^^^^
    = say where it is: { file = "path" }, { env = "NAME" } or { credential = "name" } (systemd)

error: `address` in [admin] must be a loopback address: it has no authentication
   --> nullhop.toml:20:11
    |
 20 | address = "***"
    |           ^^^^^

error: `provider` in [[upstream]] must be one of `openai`, `anthropic`, `gemini`, `vertex`, `bedrock`, `azure`, `compatible`; did you mean `openai`?
   --> nullhop.toml:24:12
    |
 24 | provider = "***"
    |            ^^^^^

error: `name` in [[upstream]] must be unique, the same as on line 23
   --> nullhop.toml:27:8
    |
 27 | name = "***"
    |        ^^^^^

error: `url` in [[upstream]] must not hold a user name or a password (`@`)
   --> nullhop.toml:29:7
    |
 29 | url = "***"
    |       ^^^^^
"#;
    let report = read(text).err().unwrap();
    assert_eq!(report.problems(), 10);
    assert_eq!(report.to_string(), expected);

    let json = report.to_json();
    assert_eq!(json["count"], 10);
    assert_eq!(json["problems"][0]["line"], 3);
    assert_eq!(json["problems"][0]["column"], 11);
    assert_eq!(json["problems"][5]["message"], "`token` in [metrics] is a secret and must not stand in this file");
}

#[test]
fn suggestions() {
    for (text, expected) in [
        ("[limit]\nx = 1", "unknown section `limit`, did you mean [limits]?"),
        ("[listner]\nx = 1", "unknown section `listner`, did you mean [[listener]]?"),
        ("[limits]\nidle-timeout = 1", "unknown key `idle-timeout` in [limits], did you mean `idle_timeout`?"),
        ("[limits]\nIdle_Timeot = 1", "unknown key `Idle_Timeot` in [limits], did you mean `idle_timeout`?"),
        ("[limits]\ngrace = 1", "unknown key `grace` in [limits], it belongs in [drain]"),
        ("workers = 1", "unknown key `workers` above the first section, it belongs in [runtime]"),
        ("[limits]\nwhatever = 1", "unknown key `whatever` in [limits]"),
        ("[limits]\n\"with space\" = 1", "unknown key `***` in [limits]"),
        ("[limits]\nsk-ant-api03-81 = 1", "unknown key `***` in [limits]"),
        ("[log]\nlevel = \"warning\"", "`level` in [log] must be one of `error`, `warn`, `info`"),
        ("[log]\nlevel = \"inof\"", "`level` in [log] must be one of `error`, `warn`, `info`; did you mean `info`?"),
        ("[listener]\naddress = \"[::1]:1\"", "`listener` may be there several times: write [[listener]]"),
        ("[[limits]]\n[[limits]]", "`limits` is there once: write [limits]"),
        ("limits = 5", "`limits` is a section: write [limits]"),
        (
            "[metrics]\ntoken = { fil = \"x\" }",
            "`token` in [metrics] must be { file = \"path\" }, { env = \"NAME\" } or { credential = \"name\" }",
        ),
        (
            "[metrics]\ntoken = 5",
            "`token` in [metrics] must be { file = \"path\" }, { env = \"NAME\" } or { credential = \"name\" }, not an integer",
        ),
    ] {
        assert_eq!(messages(&with_upstream(text)), [expected], "{text}");
    }
    // A number where a secret belongs may be one.
    assert!(!report(&with_upstream("[metrics]\ntoken = 31337")).contains("31337"));
    // A mistyped section or key is one problem, not also a missing one.
    assert_eq!(report("[[upstreams]]\nname = \"a\"").matches("error:").count(), 1);
}

#[test]
fn rules_across_keys() {
    let listener = "[[listener]]\naddress = ";
    let upstream = "[[upstream]]\nprovider = \"compatible\"\nname = ";
    for (text, expected) in [
        (
            format!("{listener}\"0.0.0.0:80\"\ntls = false"),
            "`tls = false` in [[listener]] is for loopback addresses: keys and content would cross the network readable",
        ),
        (format!("{listener}\"[::1]:1\"\n{listener}\"[::1]:2\""), "`name` in [[listener]] must be unique"),
        (format!("{listener}\"127.0.0.1:9464\""), "`address` in [metrics] must be unique, the same as on line 2"),
        (
            format!("{listener}\"localhost:80\""),
            "`address` in [[listener]] must be an IP address and a port, such as 127.0.0.1:8443 or [::1]:8443",
        ),
        (
            format!("{listener}\"[::1]:1\"\nproxy_protocol_from = [\"10.0.0.0/40\"]"),
            "`proxy_protocol_from` in [[listener]] must hold networks such as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "[tls]\nclient_auth = \"required\"".to_owned(),
            "`client_auth` in [tls] needs `ca_file`, the authorities of client certificates",
        ),
        (
            "[tls]\nclient_auth = \"required\"\nca_file = \"x\"".to_owned(),
            "the file of `ca_file` in [tls] does not exist",
        ),
        (
            "[server]\nhosts = [\"a.example\", \"A.example\"]".to_owned(),
            "`hosts` in [server] must be unique, the same as on line 2",
        ),
        (format!("{upstream}\"a\""), "[[upstream]] needs `url`"),
        (
            format!("{upstream}\"none\"\nurl = \"https://a.example\""),
            "`name` in [[upstream]] must not be `none`: the metrics say that when no upstream is chosen",
        ),
        (
            format!("{upstream}\"a\"\nurl = \"https://a.example\"\nprefix = \"/openai\""),
            "`prefix` in [[upstream]] must be unique, the same as on line 5",
        ),
        (
            format!("{upstream}\"a\"\nurl = \"https://a.example\"\nprefix = \"\""),
            "`prefix` in [[upstream]] is empty, so the upstream needs `hosts` or `bare`: nothing leads to it",
        ),
        (
            format!("{upstream}\"a\"\nurl = \"http://10.0.0.1\"\nprotocol = \"h2\""),
            "`protocol` in [[upstream]] cannot be `h2` with an http:// URL: HTTP/2 is agreed on inside TLS, and prior knowledge (h2c) is not spoken",
        ),
        (
            format!("{upstream}\"a\"\nurl = \"https://a.example\"\n[[upstream.endpoint]]\nurl = \"https://b.example\""),
            "`url` in [[upstream]] stands beside [[upstream.endpoint]]: write one or the other",
        ),
        (
            format!(
                "{upstream}\"a\"\n[[upstream.endpoint]]\nurl = \"https://b.example\"\n[[upstream.endpoint]]\nurl = \"https://b.example/\""
            ),
            "`url` in [[upstream.endpoint]] must be unique, the same as on line 5",
        ),
        (
            format!(
                "{upstream}\"a\"\nurl = \"https://a.example\"\nbare = true\n{upstream}\"b\"\nurl = \"https://a.example\"\nbare = true"
            ),
            "only one [[upstream]] per API can be `bare`: it answers when a path has no prefix",
        ),
        (
            "[metrics]\ntoken = { env = \"UNSET\" }".to_owned(),
            "`token` in [metrics] names an environment variable that is not set",
        ),
        (
            "[metrics]\ntoken = { credential = \"x\" }".to_owned(),
            "`token` in [metrics] names a credential, and $CREDENTIALS_DIRECTORY is not set: is this started by systemd with LoadCredential=?",
        ),
        ("[metrics]\ntoken = { file = \"x\" }".to_owned(), "the file of `token` in [metrics] does not exist"),
    ] {
        let got = messages(&with_upstream(&text));
        assert_eq!(got.len(), 1, "{text}\n{got:?}");
        assert!(got[0].starts_with(expected), "{text}\n{got:?}");
    }
    assert_eq!(messages(""), ["there is no [[upstream]], so nothing to relay to"]);
    ok(&format!("{listener}\"0.0.0.0:80\"\ntls = false\nplaintext = \"i-know\""));
    ok(&format!("{listener}\"127.0.0.1:80\"\ntls = false"));
    ok("[drain]\ngrace = \"0s\"\ndeadline = \"0s\"");
    let off = ok("[metrics]\nenabled = false\n[admin]\nenabled = false").config;
    assert!(off.metrics.is_none() && off.admin.is_none());
    let open = ok("[metrics]\naddress = \"0.0.0.0:9464\"");
    assert_eq!(open.warnings.len(), 1);
    assert!(
        open.warnings[0]
            .to_string()
            .starts_with("warning: [metrics] is open to the network without a `token`\n  --> nullhop.toml:2:11\n")
    );
}

#[test]
fn values_arrive() {
    let config = ok(
        "[node]\npop = \"fra-1\"\n[runtime]\nworkers = 3\n[limits]\nbody_bytes = \"1MiB\"\nhead_bytes = 0x4000\nbody_grace = \"90s\"\nconnections = 5_000\n\
         [server]\nhosts = [\"Edge.example.com\"]\npublic_url = \"https://edge.example.com/\"\n\
         [[listener]]\nname = \"v6\"\naddress = \"[::1]:443\"\nproxy_protocol_from = [\"10.0.0.0/8\"]\n\
         [[upstream]]\nname = \"b\"\nprovider = \"azure\"\nprefix = \"\"\nhosts = [\"B.example\"]\nprivacy = \"session\"\nbody_bytes = 4096\n\
         [[upstream.endpoint]]\nurl = \"https://x.openai.azure.com\"\nweight = 3\n[[upstream.endpoint]]\nurl = \"https://y.openai.azure.com:8443/p/\"",
    )
    .config;
    assert_eq!(config.node.pop.as_deref(), Some("fra-1"));
    assert_eq!(config.runtime.workers, 3);
    assert_eq!(config.limits.body_bytes, 1 << 20);
    assert_eq!(config.limits.head_bytes, 0x4000);
    assert_eq!(config.limits.connections, 5000);
    assert_eq!(config.limits.body_grace, Duration::from_secs(90));
    assert_eq!(config.hosts, ["edge.example.com"]);
    assert_eq!(config.public_url.as_deref(), Some("https://edge.example.com"));
    assert_eq!(config.listeners[0].proxy_protocol_from, ["10.0.0.0/8"]);
    let upstream = &config.upstreams[0];
    assert!(upstream.prefix.is_none() && upstream.websocket && upstream.privacy == Privacy::Session);
    assert_eq!((upstream.hosts[0].as_str(), upstream.body_bytes), ("b.example", Some(4096)));
    let endpoints: Vec<_> = upstream.endpoints.iter().map(|e| (e.to_string(), e.weight)).collect();
    assert_eq!(
        endpoints,
        [("https://x.openai.azure.com".to_owned(), 3), ("https://y.openai.azure.com:8443/p".to_owned(), 1)]
    );
}

#[test]
fn secrets() {
    let folder = Folder::new("secrets");
    folder.write("good", b"t0ken\r\n", 0o600);
    folder.write("open", b"t0ken\n", 0o644);
    folder.write("empty", b"\n", 0o600);
    folder.write("long", &[b'x'; (64 << 10) + 1], 0o600);
    folder.write("spaces", b"a b", 0o600);
    folder.write("edge.crt", b"a certificate", 0o644);
    let credentials = folder.0.clone();
    let variable = move |name: &str| match name {
        "CREDENTIALS_DIRECTORY" => Some(OsString::from(&credentials)),
        "TOKEN" => Some(OsString::from("t0ken")),
        _ => None,
    };
    let surroundings = Surroundings { base_dir: &folder.0, variable: &variable };
    let token = |form: &str| {
        let text = with_upstream(&format!("[metrics]\ntoken = {form}"));
        Config::from_surroundings(&text, "nullhop.toml", &surroundings)
    };
    for (form, warnings) in [
        ("{ file = \"good\" }", 0),
        ("{ file = \"open\" }", 1),
        ("{ env = \"TOKEN\" }", 0),
        ("{ credential = \"open\" }", 0),
    ] {
        let loaded = token(form).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.warnings.len(), warnings, "{form}");
        let metrics = loaded.config.metrics.as_ref().unwrap();
        assert_eq!(metrics.token.as_ref().unwrap().expose(), b"t0ken", "{form}");
        assert!(loaded.shown.contains("token = \"***\""));
        assert!(!loaded.shown.contains("t0ken"));
    }
    for (form, expected) in [
        ("{ file = \"empty\" }", "the file of `token` in [metrics] is empty"),
        ("{ file = \"long\" }", "the file of `token` in [metrics] is larger than 64 KiB"),
        ("{ file = \".\" }", "the file of `token` in [metrics] is not a regular file"),
        ("{ file = \"spaces\" }", "`token` in [metrics] must be printable ASCII"),
        ("{ credential = \"../good\" }", "`token` in [metrics] must be { file"),
        ("{ env = \"TO KEN\" }", "`token` in [metrics] must be { file"),
        ("{ env = \"A\", file = \"b\" }", "`token` in [metrics] must be { file"),
        ("{}", "`token` in [metrics] must be { file"),
    ] {
        let report = token(form).err().unwrap().to_string();
        assert!(report.contains(&format!("error: {expected}")), "{report}");
    }

    let text = with_upstream(
        "[[certificate]]\nname = \"a\"\ncert_file = \"edge.crt\"\nkey = { file = \"good\" }\n\
         [[certificate]]\nname = \"b\"\ncert_file = \"edge.crt\"\nkey = { credential = \"good\" }",
    );
    let config =
        Config::from_surroundings(&text, "nullhop.toml", &surroundings).unwrap_or_else(|r| panic!("{r}")).config;
    assert!(matches!(&config.certificates[0].key, KeySource::File(path) if *path == folder.0.join("good")));
    assert!(matches!(&config.certificates[1].key, KeySource::Inline(key) if key.expose() == b"t0ken"));
    assert!(config.certificates[0].default && !config.certificates[1].default);
}

#[test]
fn files() {
    let folder = Folder::new("files");
    folder.write("good.toml", BUILT_IN.as_bytes(), 0o644);
    folder.write("binary.toml", b"[node]\npop = \"\xff\"", 0o644);
    folder.write("large.toml", &vec![b'\n'; (1 << 20) + 1], 0o644);
    assert_eq!(Config::load(&folder.0.join("good.toml")).unwrap_or_else(|r| panic!("{r}")).config.upstreams.len(), 5);
    for (name, expected) in [
        ("binary.toml", "this file is not UTF-8"),
        ("large.toml", "this file is larger than 1 MiB"),
        ("missing.toml", "this file does not exist"),
        (".", "this file cannot be read"),
    ] {
        let report = Config::load(&folder.0.join(name)).err().unwrap();
        assert!(report.to_string().ends_with(&format!("1 problem\nerror: {expected}\n")), "{report}");
    }
}

#[test]
fn a_reload_reads_the_folders_of_named_files() {
    let (folder, linked) = (Folder::new("named"), Folder::new("linked"));
    linked.write("ca.pem", b"text", 0o644);
    let link = folder.0.join("ca.pem");
    std::os::unix::fs::symlink(linked.0.join("ca.pem"), &link).unwrap();
    let text = with_upstream("[memory]\nlock = \"required\"") + "ca_file = \"ca.pem\"\n";
    folder.write("good.toml", text.as_bytes(), 0o644);
    let loaded = Config::load(&folder.0.join("good.toml")).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.config.memory.lock == MemoryLock::Required);
    let readable = &loaded.config.readable;
    let wanted = [&folder.0, &linked.0].map(|folder| fs::canonicalize(folder).unwrap());
    assert!(readable.iter().all(|path| wanted.contains(path)), "{readable:?}");
    assert!(wanted.iter().all(|path| readable.contains(path)), "{readable:?}");
    assert!(Config::built_in().readable.is_empty());
    // Not everything below the root.
    assert!(check::folders_of(Path::new("/nullhop.toml")).iter().all(|path| path == Path::new("/nullhop.toml")));
    assert!(check::folders_of(Path::new("/etc/../nullhop.toml")).iter().all(|path| path != Path::new("/")));
}

#[test]
fn built_in_round_trip() {
    let loaded = Config::load_built_in();
    let config = &loaded.config;
    assert!(loaded.warnings.is_empty());
    let upstreams: Vec<_> = config
        .upstreams
        .iter()
        .map(|u| (u.name.as_str(), u.prefix.as_deref().unwrap(), u.bare, u.websocket, u.endpoints[0].to_string()))
        .collect();
    let expected = [
        ("openai", "/openai", true, true, "https://api.openai.com"),
        ("anthropic", "/anthropic", true, false, "https://api.anthropic.com"),
        ("gemini", "/gemini", true, true, "https://generativelanguage.googleapis.com"),
        ("deepseek", "/deepseek", false, false, "https://api.deepseek.com"),
        ("openrouter", "/openrouter", false, false, "https://openrouter.ai/api"),
    ];
    assert_eq!(upstreams, expected.map(|(n, p, b, w, url)| (n, p, b, w, url.to_owned())));
    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:8443");
    assert!(config.listeners[0].tls);
    assert_eq!(config.metrics.as_ref().unwrap().address.to_string(), "127.0.0.1:9464");
    assert_eq!(config.admin.as_ref().unwrap().address.to_string(), "127.0.0.1:9465");

    // What is shown is a configuration, and the same one.
    let again = read(&loaded.shown).unwrap_or_else(|report| panic!("{report}"));
    assert!(again.warnings.is_empty(), "{}", again.warnings[0]);
    assert_eq!(again.shown, loaded.shown);
    assert_eq!(again.config.fingerprint, config.fingerprint);
    assert_eq!(read(BUILT_IN).unwrap_or_else(|r| panic!("{r}")).config.fingerprint, config.fingerprint);
}

#[test]
fn fingerprint_is_of_the_values() {
    let of = |text: &str| ok(text).config.fingerprint;
    let plain = of("");
    assert!(plain > 0 && plain < 1 << 48);
    for same in [
        "# a comment",
        "[limits]\nidle_timeout = \"1m\"",
        "[limits]\nidle_timeout = \"60000ms\"",
        "[limits]\nhead_bytes = 65536",
        "[runtime]\nworkers = 0",
        // Nodes of one fleet differ in this alone.
        "[node]\npop = \"fra-1\"",
    ] {
        assert_eq!(of(same), plain, "{same}");
    }
    for other in ["[limits]\nidle_timeout = \"2m\"", "[runtime]\nworkers = 1", "[log]\nlevel = \"warn\""] {
        assert_ne!(of(other), plain, "{other}");
    }
}

#[test]
fn every_default_and_example_is_valid() {
    for section in SECTIONS {
        for key in section.keys {
            assert!(key.default.is_none_or(|text| text == key.example), "{}", key.name);
            assert!(!(key.required && key.default.is_some()), "{}", key.name);
        }
    }
    // All keys at once: each commented line of the first file, uncommented.
    let text: String = describe::init()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut faults = Vec::new();
    let raw = parse::parse(&text, &mut faults).unwrap_or_else(|_| panic!("not TOML: {text}"));
    let report = (!faults.is_empty()).then(|| Report::new("init", &Lines::parsed(&text, raw.showable), faults));
    assert!(report.is_none(), "{}", report.unwrap());
    for section in SECTIONS {
        assert!(text.contains(&format!("\n{}\n", section.header())));
        for key in section.keys {
            assert!(text.contains(&format!("\n{} = ", key.name)), "{}", key.name);
        }
    }
}

#[test]
fn init_is_valid_and_means_the_built_in() {
    let loaded = read(&describe::init()).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.shown, Config::load_built_in().shown);
}

#[test]
fn schema_lists_every_key() {
    let schema = describe::schema();
    let again: serde_json::Value = serde_json::from_str(&format!("{schema:#}")).unwrap();
    assert_eq!(again, schema);
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    for section in SECTIONS {
        let mut at = &schema;
        for part in section.path.split('.') {
            at = &at["properties"][part];
            if at["type"] == "array" {
                at = &at["items"];
            }
        }
        assert_eq!(at["additionalProperties"], false, "{}", section.path);
        let children = section.children().count();
        assert_eq!(at["properties"].as_object().unwrap().len(), section.keys.len() + children);
        for key in section.keys {
            let schema = &at["properties"][key.name];
            assert_eq!(schema["description"], key.doc, "{}", key.name);
            assert_eq!(schema.get("default").is_some(), key.default.is_some(), "{}", key.name);
            if let Kind::OneOf(words) = key.kind {
                assert_eq!(schema["enum"], serde_json::json!(words));
            }
            let required = at["required"].as_array();
            let required = required.is_some_and(|names| names.iter().any(|name| name == key.name));
            assert_eq!(required, key.required, "{}", key.name);
        }
    }
}

#[test]
fn providers_are_those_of_the_code() {
    let upstream = SECTIONS.iter().find(|s| s.path == "upstream").unwrap();
    let Kind::OneOf(words) = upstream.keys.iter().find(|k| k.name == "provider").unwrap().kind else {
        panic!("provider is a closed list");
    };
    let provider: Vec<_> = Provider::ALL.iter().map(|p| p.as_str()).collect();
    assert_eq!(words, provider);
}

/// `NULLHOP_BLESS=1 cargo test -p nullhop --lib config` writes the page anew.
#[test]
fn reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let expected = describe::reference();
    if std::env::var_os("NULLHOP_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "docs/configuration.md is old: set NULLHOP_BLESS=1 and run this test");
}

#[test]
fn syntax_errors_show_no_more_than_our_own_words() {
    for (text, expected) in [
        ("[limits]\nconnections = sesame", " 2 | connections = ***\n"),
        ("[limits\nx = 1", " 1 | [limits\n"),
        ("[[upstream]\nname = \"a\"", " 1 | [[upstream]\n"),
        ("[metrics]\ntoken \"sesame\"", " 2 | ***\n"),
        ("[metrics]\ntoken = \"sesame", " 2 | token = ***\n"),
        ("[metrics]\nsesame", " 2 | ***\n"),
        ("[sesame", " 1 | ***\n"),
        ("[limits]\nhead_fields = 1\nhead_fields = 2", " 3 | head_fields = ***\n"),
        ("[log]\nlevel = \"info\" sesame # sesame", " 2 | level = ***\n"),
        ("[metrics]\ntoken = \"\"\"\nsesame\nopen sesame", "***"),
    ] {
        let report = report(text);
        assert!(report.contains(expected), "{report}");
        assert!(report.contains("error: not valid TOML: "), "{report}");
        assert!(!report.contains("sesame"), "{report}");
    }
}

#[test]
fn shown_lines_hold_no_values() {
    // Every kind of string, with quotes and hashes inside, beside an unknown key on the same line.
    let text = r##"
[node]
wrong = { a = "sesame \" # sesame", b = 'sesame # "', "sesame" = [1979-05-27, "sesame"], c = 12345 } # sesame
pop = """sesame ""\"
sesame"""
[limits]
connections = ['''sesame ' '' #''', """sesame""""", 7]
head_fields = 7.5 # sesame
head_bytes = true
[[upstream]]
name = """
sesame sesame"""
provider = 'sesame'
"##;
    let report = report(text);
    assert!(!report.contains("sesame") && !report.contains("12345") && !report.contains("1979"), "{report}");
    for line in [
        r#" 3 | wrong = { *** = "***", *** = "***", "***" = [***, "***"], *** = *** }"#,
        r#" 4 | pop = "***""#,
        r#" 7 | connections = ["***", "***", ***]"#,
        r#" 8 | head_fields = 7.5"#,
        r#" 9 | head_bytes = true"#,
        r#" 11 | name = "***""#,
        r#" 13 | provider = "***""#,
    ] {
        assert!(report.contains(line), "{line}\n{report}");
    }
}

#[test]
fn a_thousand_problems_are_counted_and_a_hundred_shown() {
    let many: String = (0..1000).map(|n| format!("x{n} = 1\n")).collect();
    let report = read(&with_upstream(&format!("[limits]\n{many}"))).err().unwrap();
    assert_eq!(report.problems(), 1000);
    let text = report.to_string();
    assert_eq!(text.matches("error: ").count(), 100);
    assert!(text.ends_with("\nand 900 more\n"));
    // A line of a megabyte is cut, and quickly.
    let wide = format!("[limits]\nx = [{}]", "1, ".repeat(300_000));
    assert!(read(&wide).err().unwrap().to_string().len() < 2_000);
}

#[test]
fn models_are_patterns() {
    let with = |list: &str| with_upstream(&format!("[metrics]\nmodels = {list}"));
    assert_eq!(ok("[metrics]\nmodels = [\"house-*\", \"v/m@1:x\"]").config.models, ["house-*", "v/m@1:x"]);
    for (list, says) in [
        ("[\"a b\"]", "must hold patterns of letters, digits and . _ : / @ - with * for any run of them"),
        ("[\"\"]", "must hold patterns of 1 to 96 characters"),
        ("[\"other\"]", "must not hold `other`"),
        ("\"x\"", "must be a list of patterns, such as [\"house-*\"], not a string"),
    ] {
        assert!(report(&with(list)).contains(&format!("`models` in [metrics] {says}")), "{list}");
    }
    let many = |count: usize| format!("{:?}", (0..count).map(|number| format!("m{number}")).collect::<Vec<_>>());
    assert_eq!(ok(&format!("[metrics]\nmodels = {}", many(63))).config.models.len(), 63);
    assert!(report(&with(&many(64))).contains("`models` in [metrics] has more than 63 patterns"));
}

/// A folder with a file of keys and the secrets that the tests below name.
fn key_folder(name: &str, keys: &[&str]) -> Folder {
    let folder = Folder::new(name);
    let line = |(place, more): (usize, &&str)| {
        let hash = format!("{place:02x}").repeat(32);
        format!("{{\"id\":\"k{place}\",\"hash\":\"{hash}\",\"label\":\"l\"{more}}}\n")
    };
    let text: String = keys.iter().enumerate().map(line).collect();
    folder.write("keys.jsonl", text.as_bytes(), 0o600);
    folder.write("keys.secret", &[b'x'; 32], 0o600);
    folder.write("short.secret", &[b'x'; 31], 0o600);
    folder.write("one.key", b"sk-one\n", 0o600);
    folder.write("bearer.key", b"Bearer sk-one\n", 0o600);
    folder.write("spaced.key", b"sk one", 0o600);
    folder
}

fn read_in(folder: &Folder, text: &str) -> Result<Loaded, Report> {
    let surroundings = Surroundings { base_dir: &folder.0, variable: &|_| None };
    Config::from_surroundings(text, "nullhop.toml", &surroundings)
}

const KEYS: &str = "[keys]\nfile = \"keys.jsonl\"\nsecret = { file = \"keys.secret\" }\n";
const UPSTREAM: &str = "[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n";
const PROVIDER_KEY: &str = "[[upstream.key]]\nsecret = { file = \"one.key\" }\n";
const PLAN: &str = "[[plan]]\nname = \"team\"\n";

#[test]
fn keys_plans_and_prices_arrive() {
    let folder = key_folder("arrive", &["", ",\"plan\":\"team\",\"upstreams\":[\"openai\"]"]);
    let text = format!(
        "{KEYS}header = \"X-Team-Key\"\nrequired = true\non_revoke = \"cut\"\nplan = \"team\"\naccount_plan = \"whole\"\n\
         [admission]\ntime_zone = \"europe/berlin\"\nreserve_input_tokens = 1\nreserve_output_tokens = 2\n\
         wrong_keys_per_minute = 3\nstreams = 4\nlag_max = \"0s\"\n\
         [[plan]]\nname = \"whole\"\n\
         [[plan]]\nname = \"team\"\nconcurrency = 50\nrates = [\"600 requests/minute\", \"2M tokens/1h\"]\n\
         budgets = [\"12.50 usd/day\"]\nsoft_percent = 70\non_budget = \"cut\"\npriority = \"high\"\n\
         [[account]]\nname = \"ACME.1\"\nplan = \"team\"\n\
         [[price]]\nmodels = [\"gpt-5-mini*\", \"gpt-5\"]\nupstreams = [\"other\", \"openai\"]\ninput = \"2.50\"\noutput = \"10\"\ncache_read = \"0\"\n\
         [[price]]\nmodels = [\"gpt-5-mini*\"]\ninput = \"1\"\noutput = \"2\"\nreasoning = \"3\"\ncache_write = \"1.25\"\n\
         [journal]\nbytes = \"1MiB\"\nage = \"1h\"\n\
         [metrics]\nper_key = true\nmax_keys = 7\n\
         {UPSTREAM}plan = \"whole\"\nkey_header = \"api-key\"\n{PROVIDER_KEY}weight = 9\n{PROVIDER_KEY}name = \"spare\"\n\
         [[upstream]]\nname = \"other\"\nprovider = \"anthropic\"\naccess = \"both\"\n{PROVIDER_KEY}\
         [[upstream]]\nname = \"plain\"\nprovider = \"gemini\"\ncaller_plan = \"team\"\n"
    );
    let loaded = read_in(&folder, &text).unwrap_or_else(|report| panic!("{report}"));
    let config = &loaded.config;
    assert_eq!(loaded.keys, Some(2));
    let keys = config.keys.as_ref().unwrap();
    assert_eq!((&keys.file, keys.header.as_str()), (&folder.0.join("keys.jsonl"), "x-team-key"));
    assert!(keys.required && keys.on_revoke == OnRevoke::Cut);
    assert_eq!((keys.key_plan, keys.account_plan), (Some(1), Some(0)));
    let wanted = HashKey::new(&Secret::new(vec![b'x'; 32])).unwrap();
    assert_eq!(keys.hash_key.hash(b"key"), wanted.hash(b"key"));
    let admission = &config.admission;
    assert_eq!(admission.time_zone.iana_name(), Some("Europe/Berlin"));
    assert_eq!((admission.reserve_input_tokens, admission.reserve_output_tokens), (1, 2));
    assert_eq!((admission.wrong_keys_per_minute, admission.streams, admission.lag_max), (3, 4, Duration::ZERO));
    let plan = &config.plans[1];
    assert_eq!((plan.name.as_str(), plan.on_budget, plan.priority), ("team", OnBudget::Cut, Priority::High));
    let rate = |kind, amount, seconds: u64| limits::Rate { kind, amount, window: seconds * 1_000_000_000 };
    let expected = limits::Limits {
        concurrency: Some(50),
        rates: [rate(limits::Kind::Requests, 600, 60), rate(limits::Kind::Tokens, 2_000_000, 3600)].into(),
        budgets: [limits::Budget {
            kind: limits::Kind::Money,
            amount: 12_500_000_000_000,
            period: limits::Period::Day,
            soft_percent: 70,
        }]
        .into(),
    };
    assert_eq!(*plan.limits, expected);
    assert_eq!(*config.plans[0].limits, limits::Limits::default());
    assert_eq!((config.accounts[0].name.as_str(), config.accounts[0].plan), ("ACME.1", 1));
    assert_eq!(
        (&config.prices[0].models[..], &config.prices[0].upstreams[..]),
        (&["gpt-5-mini*".to_owned(), "gpt-5".to_owned()][..], &[1, 0][..])
    );
    let prices = |input, cache_read, cache_write, output, reasoning| TokenPrices {
        input,
        cache_read,
        cache_write,
        output,
        reasoning,
    };
    assert_eq!(config.prices[0].per_token, prices(2_500_000, 0, 2_500_000, 10_000_000, 10_000_000));
    assert_eq!(config.prices[1].per_token, prices(1_000_000, 1_000_000, 1_250_000, 2_000_000, 3_000_000));
    assert!(config.prices[1].upstreams.is_empty());
    let journal = Journal { folder: folder.0.join("usage"), bytes: 1 << 20, age: Duration::from_secs(3600) };
    assert_eq!(config.journal, Some(journal));
    assert_eq!(config.metrics.as_ref().unwrap().keys_max, 7);
    let [openai, other, plain] = &config.upstreams[..] else { panic!("three upstreams") };
    assert_eq!(openai.access, Access { managed: true, byok: false });
    assert_eq!((openai.plan, openai.caller_plan, openai.key_header), (Some(0), None, KeyHeader::ApiKey));
    let shown: Vec<_> = openai.keys.iter().map(|key| (key.name.as_str(), key.secret.expose(), key.weight)).collect();
    assert_eq!(shown, [("key-1", &b"sk-one"[..], 9), ("spare", b"sk-one", 1)]);
    assert_eq!(other.access, Access { managed: true, byok: true });
    assert_eq!(plain.access, Access { managed: false, byok: true });
    assert_eq!((plain.keys.len(), plain.caller_plan, plain.key_header), (0, Some(1), KeyHeader::Auto));
    for says in [
        "rates = [\"600 requests/1m\", \"2M tokens/1h\"]",
        "budgets = [\"12.5 usd/day\"]",
        "cache_write = \"2.5\"",
        "access = \"managed\"",
        "secret = \"***\"",
    ] {
        assert!(loaded.shown.contains(says), "{}", loaded.shown);
    }
    assert!(!loaded.shown.contains("sk-one") && !loaded.shown.contains("xxxxxxxx"));
    // A reload reads the file of keys and the secrets anew.
    assert!(config.readable.contains(&fs::canonicalize(&folder.0).unwrap()));
    // Every key counts, also those that stand below an upstream.
    for (from, to) in [
        ("weight = 9", "weight = 8"),
        ("\"2M tokens/1h\"", "\"3M tokens/1h\""),
        ("soft_percent = 70", "soft_percent = 71"),
        ("plan = \"whole\"\nkey_header", "key_header"),
        ("input = \"1\"", "input = \"1.000001\""),
        ("lag_max = \"0s\"", "lag_max = \"1s\""),
        ("X-Team-Key", "X-Team-Keys"),
        ("name = \"spare\"", "name = \"other\""),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let changed = read_in(&folder, &changed).unwrap_or_else(|report| panic!("{report}"));
        assert_ne!(changed.config.fingerprint, config.fingerprint, "{from}");
    }
}

#[test]
fn without_the_new_sections_nothing_changes() {
    let loaded = ok("");
    let config = &loaded.config;
    assert!(config.keys.is_none() && config.journal.is_none() && loaded.keys.is_none());
    assert!(config.plans.is_empty() && config.accounts.is_empty() && config.prices.is_empty());
    let admission = &config.admission;
    assert_eq!((admission.reserve_input_tokens, admission.reserve_output_tokens), (2048, 4096));
    assert_eq!((admission.wrong_keys_per_minute, admission.streams), (10, 20_000));
    assert_eq!((admission.time_zone.iana_name(), admission.lag_max), (Some("UTC"), Duration::from_millis(500)));
    assert_eq!(config.metrics.as_ref().unwrap().keys_max, 0);
    assert_eq!(config.upstreams[0].access, Access { managed: false, byok: true });
    // What is shown without secrets is a configuration, and the same one.
    let text = format!(
        "{PLAN}rates = [\"1.5k tokens/day\"]\nbudgets = [\"0.10 usd/day\"]\n[[account]]\nname = \"A\"\nplan = \"team\"\n\
         [[price]]\nmodels = [\"m\"]\ninput = \"0.10\"\noutput = \"1\"\n[journal]\nfolder = \"/tmp/no-such-folder\"\n\
         [[upstream]]\nname = \"a\"\nprovider = \"openai\"\ncaller_plan = \"team\"\n"
    );
    let loaded = read(&text).unwrap_or_else(|report| panic!("{report}"));
    let again = read(&loaded.shown).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((&again.shown, again.config.fingerprint), (&loaded.shown, loaded.config.fingerprint));
    assert_eq!(again.config.journal, loaded.config.journal);
}

#[test]
fn rules_across_keys_plans_and_prices() {
    let folder = key_folder("rules", &[""]);
    let price = "[[price]]\ninput = \"1\"\noutput = \"1\"\nmodels = ";
    let rates = |list: &str| format!("{PLAN}rates = [{list}]\n{UPSTREAM}");
    let budgets = |list: &str| format!("{PLAN}budgets = [{list}]\n{UPSTREAM}");
    let nine: String = (1..=9).map(|minutes| format!("\"1 requests/{minutes}m\",")).collect();
    let nine_budgets = "\"1 tokens/day\",\"1 tokens/month\",\"1 requests/day\",\"1 requests/month\",\"1 input tokens/day\",\
                        \"1 input tokens/month\",\"1 output tokens/day\",\"1 output tokens/month\",\"1 usd/month\"";
    let many =
        |from: usize, to: usize| format!("{:?}", (from..to).map(|number| format!("m{number}")).collect::<Vec<_>>());
    for (text, expected) in [
        (format!("[keys]\nfile = \"keys.jsonl\"\n{UPSTREAM}"), "[keys] needs `secret`"),
        (
            format!("{}{UPSTREAM}", KEYS.replace("keys.jsonl", "none.jsonl")),
            "the file of `file` in [keys] does not exist",
        ),
        (
            format!("{}{UPSTREAM}", KEYS.replace("keys.secret", "none.secret")),
            "the file of `secret` in [keys] does not exist",
        ),
        (
            format!("{}{UPSTREAM}", KEYS.replace("keys.secret", "short.secret")),
            "`secret` in [keys] must have 32 bytes or more",
        ),
        (
            format!("[keys]\nfile = \"keys.jsonl\"\nsecret = \"xxxx\"\n{UPSTREAM}"),
            "`secret` in [keys] is a secret and must not stand in this file",
        ),
        (
            format!("{KEYS}header = \"authorization\"\n{UPSTREAM}"),
            "`header` in [keys] must be the name of a header that nothing else uses",
        ),
        (format!("{KEYS}plan = \"team\"\n{UPSTREAM}"), "`plan` in [keys] names no [[plan]]: there is none"),
        (
            format!("{KEYS}account_plan = \"taem\"\n{PLAN}{UPSTREAM}"),
            "`account_plan` in [keys] names no [[plan]], did you mean the one on line 6?",
        ),
        (format!("{KEYS}plan = \"gold\"\n{PLAN}{UPSTREAM}"), "`plan` in [keys] names no [[plan]]"),
        (format!("{PLAN}{PLAN}{UPSTREAM}"), "`name` in [[plan]] must be unique, the same as on line 2"),
        (format!("[[plan]]\nname = \"Team\"\n{UPSTREAM}"), "`name` in [[plan]] must be a name"),
        (
            format!("{PLAN}concurrency = 0\n{UPSTREAM}"),
            "`concurrency` in [[plan]] must be an integer from 1 to 1000000",
        ),
        (
            format!("{PLAN}soft_percent = 101\n{UPSTREAM}"),
            "`soft_percent` in [[plan]] must be an integer from 1 to 100",
        ),
        (rates("\"600 requests\""), "`rates` in [[plan]] holds rates, which are written like 600 requests/1m"),
        (rates("\"5 usd/1m\""), "`rates` in [[plan]] holds rates, which count requests and tokens; usd is for budgets"),
        (rates("600"), "`rates` in [[plan]] must hold strings only"),
        (
            rates("\"1 requests/60s\", \"2 requests/minute\""),
            "`rates` in [[plan]] holds two rates of one kind in one time",
        ),
        (rates(&nine), "`rates` in [[plan]] has more than 8 entries"),
        (budgets("\"1 tokens/year\""), "`budgets` in [[plan]] holds budgets, which last a day or a month"),
        (budgets("\"1.5 tokens/day\""), "`budgets` in [[plan]] holds budgets, which are written like 50M tokens/day"),
        (
            budgets("\"1 tokens/day\", \"2 tokens/day\""),
            "`budgets` in [[plan]] holds two budgets of one kind and period",
        ),
        (budgets(nine_budgets), "`budgets` in [[plan]] has more than 8 entries"),
        (
            format!("{KEYS}{PLAN}[[account]]\nname = \"a b\"\nplan = \"team\"\n{UPSTREAM}"),
            "`name` in [[account]] must be a name",
        ),
        (
            format!("{KEYS}{PLAN}[[account]]\nname = \"a\"\nplan = \"gold\"\n{UPSTREAM}"),
            "`plan` in [[account]] names no [[plan]]",
        ),
        (format!("{KEYS}[[account]]\nname = \"a\"\n{UPSTREAM}"), "[[account]] needs `plan`"),
        (
            format!(
                "{PLAN}{KEYS}[[account]]\nname = \"a\"\nplan = \"team\"\n[[account]]\nname = \"a\"\nplan = \"team\"\n{UPSTREAM}"
            ),
            "`name` in [[account]] must be unique, the same as on line 7",
        ),
        (
            format!("[[price]]\nmodels = [\"m\"]\ninput = 0.25\noutput = \"1\"\n{UPSTREAM}"),
            "`input` in [[price]] must be USD for a million tokens in quotes, such as \"0.25\", so that nothing is rounded, not a fraction",
        ),
        (
            format!("[[price]]\nmodels = [\"m\"]\ninput = 1\noutput = \"1\"\n{UPSTREAM}"),
            "`input` in [[price]] must be USD for a million tokens in quotes, such as \"0.25\", so that nothing is rounded, not an integer",
        ),
        (
            format!("[[price]]\nmodels = [\"m\"]\ninput = \"0.0000001\"\noutput = \"1\"\n{UPSTREAM}"),
            "`input` in [[price]] must be USD for a million tokens, such as",
        ),
        (format!("{price}[]\n{UPSTREAM}"), "`models` in [[price]] is empty: nothing has this price"),
        (format!("{price}[\"a b\"]\n{UPSTREAM}"), "`models` in [[price]] must hold patterns"),
        (format!("{price}[\"m\"]\nupstreams = []\n{UPSTREAM}"), "`upstreams` in [[price]] is empty: leave it out"),
        (
            format!("{price}[\"m\"]\nupstreams = [\"openia\"]\n{UPSTREAM}"),
            "`upstreams` in [[price]] names no [[upstream]], did you mean the one on line 7?",
        ),
        (
            format!("{price}[\"m\"]\nupstreams = [\"openai\", \"openai\"]\n{UPSTREAM}"),
            "`upstreams` in [[price]] names an upstream twice",
        ),
        (format!("{price}[\"m\", \"m\"]\n{UPSTREAM}"), "`models` in [[price]] must be unique, the same as on line 4"),
        (
            format!("{price}[\"m\"]\n{price}[\"n\", \"m\"]\n{UPSTREAM}"),
            "`models` in [[price]] must be unique, the same as on line 4",
        ),
        (
            format!("[metrics]\nmodels = {}\n{price}{}\n{UPSTREAM}", many(0, 40), many(30, 64)),
            "`models` of all [[price]] and of [metrics] are more than 63 patterns",
        ),
        (
            format!("[admission]\ntime_zone = \"Mars/Olympus\"\n{UPSTREAM}"),
            "`time_zone` in [admission] must be the IANA name of a time zone",
        ),
        (
            format!("[journal]\nfolder = \"keys.jsonl\"\n{UPSTREAM}"),
            "`folder` in [journal] is there and is not a folder",
        ),
        (
            format!("[metrics]\nmax_keys = 5001\n{UPSTREAM}"),
            "`max_keys` in [metrics] must be an integer from 1 to 5000",
        ),
        (
            format!("{KEYS}{UPSTREAM}access = \"managed\"\n"),
            "`access` in [[upstream]] is for callers with a key of [keys], and there is no [[upstream.key]]",
        ),
        (
            format!("{KEYS}{UPSTREAM}access = \"both\"\n"),
            "`access` in [[upstream]] is for callers with a key of [keys], and there is no [[upstream.key]]",
        ),
        (
            format!("{KEYS}{UPSTREAM}access = \"byok\"\n{PROVIDER_KEY}"),
            "nobody uses a [[upstream.key]] where `access` is `byok`",
        ),
        (
            format!("{UPSTREAM}{PROVIDER_KEY}"),
            "a managed [[upstream]] needs [keys]: without, anybody who reaches this node could spend your money",
        ),
        (format!("{UPSTREAM}access = \"both\"\n{PROVIDER_KEY}"), "a managed [[upstream]] needs [keys]"),
        (
            format!("{KEYS}{UPSTREAM}{PROVIDER_KEY}name = \"a\"\n{PROVIDER_KEY}name = \"a\"\n"),
            "`name` in [[upstream.key]] must be unique, the same as on line 9",
        ),
        (
            format!("{KEYS}{UPSTREAM}{PROVIDER_KEY}{PROVIDER_KEY}name = \"key-1\"\n"),
            "`name` in [[upstream.key]] must be unique",
        ),
        (
            format!("{KEYS}{UPSTREAM}{}", PROVIDER_KEY.replace("one", "bearer")),
            "`secret` in [[upstream.key]] begins with `Bearer`: it must be the key alone",
        ),
        (
            format!("{KEYS}{UPSTREAM}{}", PROVIDER_KEY.replace("one", "spaced")),
            "`secret` in [[upstream.key]] must be printable ASCII without spaces",
        ),
        (
            format!("{KEYS}{UPSTREAM}[[upstream.key]]\nsecret = \"sk-one\"\n"),
            "`secret` in [[upstream.key]] is a secret and must not stand in this file",
        ),
        (format!("{UPSTREAM}plan = \"team\"\n"), "`plan` in [[upstream]] names no [[plan]]: there is none"),
        (
            format!("{UPSTREAM}caller_plan = \"tea\"\n{PLAN}"),
            "`caller_plan` in [[upstream]] names no [[plan]], did you mean the one on line 6?",
        ),
        // Mistyped sections are one problem, not also one for everything that names what is in them.
        (
            format!("{UPSTREAM}plan = \"team\"\n[[plans]]\nname = \"team\"\n"),
            "unknown section `plans`, did you mean [[plan]]?",
        ),
        (
            format!("{}{UPSTREAM}{PROVIDER_KEY}", KEYS.replace("[keys]", "[kyes]")),
            "unknown section `kyes`, did you mean [keys]?",
        ),
        (
            format!("{KEYS}{UPSTREAM}access = \"managed\"\n{}", PROVIDER_KEY.replace("upstream.key", "upstream.keys")),
            "unknown key `keys` in [[upstream]], did you mean `key`?",
        ),
        (
            format!("{}{UPSTREAM}{PROVIDER_KEY}", KEYS.replace("[keys]", "[[keys]]") + "[[keys]]\n"),
            "`keys` is there once: write [keys]",
        ),
    ] {
        let report = read_in(&folder, &text).err().unwrap_or_else(|| panic!("{text}")).to_string();
        let got: Vec<_> = report.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
        assert_eq!(got.len(), 1, "{text}\n{got:?}");
        assert!(got[0].starts_with(expected), "{text}\n{got:?}");
        assert!(!report.contains("sk-") && !report.contains("xxxx"), "{report}");
    }
    let missing =
        read_in(&folder, &format!("{}{UPSTREAM}", KEYS.replace("keys.jsonl", "none"))).err().unwrap().to_string();
    assert!(
        missing.contains("= `nullhop key new --keys FILE --secret FILE --label NAME` makes the first key"),
        "{missing}"
    );
    let managed = read_in(&folder, &format!("{UPSTREAM}{PROVIDER_KEY}")).err().unwrap().to_string();
    assert!(managed.contains("= write [keys] with `file` and `secret`; `nullhop key new --keys"), "{managed}");
    for text in [
        // The same pattern for other upstreams, and 63 patterns of which some are the same.
        format!("{price}[\"m\"]\nupstreams = [\"openai\"]\n{price}[\"m\"]\n{UPSTREAM}"),
        format!("[metrics]\nmodels = {}\n{price}{}\n{UPSTREAM}", many(0, 40), many(20, 63)),
        format!("{PLAN}rates = [\"1 requests/1m\", \"1 requests/1h\", \"1 tokens/1m\"]\n{UPSTREAM}"),
        format!(
            "{PLAN}rates = [\"1 requests/1m\", \"1 requests/2m\", \"1 requests/3m\", \"1 requests/4m\", \"1 requests/5m\", \"1 requests/6m\", \"1 requests/7m\", \"1 requests/8m\"]\n{UPSTREAM}"
        ),
    ] {
        let loaded = read_in(&folder, &text).unwrap_or_else(|report| panic!("{report}"));
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings[0]);
    }
}

#[test]
fn the_file_of_keys_is_read() {
    let with_keys = |name: &str, keys: &[&str]| {
        let folder = key_folder(name, keys);
        read_in(&folder, &format!("{KEYS}{PLAN}{UPSTREAM}")).map(|loaded| loaded.keys)
    };
    assert_eq!(with_keys("keys-good", &["", ",\"plan\":\"team\""]).unwrap(), Some(2));
    assert_eq!(with_keys("keys-none", &[]).unwrap(), Some(0));
    for (key, expected) in [
        (",\"plan\":\"sesame\"", "the file of `file` in [keys], line 2: the plan of key k1 is no [[plan]]"),
        (
            ",\"upstreams\":[\"openai\",\"sesame\"]",
            "the file of `file` in [keys], line 2: the upstream of key k1 is no [[upstream]]",
        ),
        (",\"sesame\":1", "the file of `file` in [keys] is not one of keys: line 2: it has a member that is not known"),
        ("sesame", "the file of `file` in [keys] is not one of keys: line 2: it is no JSON object"),
    ] {
        let report = with_keys("keys-bad", &["", key]).err().unwrap().to_string();
        assert!(report.contains(&format!("error: {expected}\n  --> nullhop.toml:2:8\n")), "{report}");
        assert!(!report.contains("sesame") && report.starts_with("nullhop.toml: 1 problem\n"), "{report}");
    }
    let many = vec![",\"plan\":\"gone\""; 150];
    assert_eq!(with_keys("keys-many", &many).err().unwrap().problems(), 100);
    // A mistyped section is one problem, not one for each key.
    let folder = key_folder("keys-typo", &many);
    let report = read_in(&folder, &format!("{KEYS}[[plans]]\nname = \"gone\"\n{UPSTREAM}")).err().unwrap();
    assert_eq!(report.problems(), 1, "{report}");
}

#[test]
fn doubts_about_keys_and_plans() {
    let folder = key_folder("doubts", &[""]);
    let price = "[[price]]\nmodels = [\"m\"]\ninput = \"1\"\noutput = \"1\"\n";
    let money = format!("{PLAN}budgets = [\"1 usd/day\"]\n");
    for (text, expected) in [
        (
            format!("{KEYS}required = true\n{UPSTREAM}{PROVIDER_KEY}"),
            "`required` in [keys] does nothing: no [[upstream]] takes callers",
        ),
        (format!("{KEYS}required = true\n{UPSTREAM}"), ""),
        (
            format!("{KEYS}{PLAN}{UPSTREAM}caller_plan = \"team\"\n{PROVIDER_KEY}"),
            "`caller_plan` in [[upstream]] does nothing: nobody comes here",
        ),
        (
            format!("{KEYS}required = true\n{PLAN}{UPSTREAM}caller_plan = \"team\"\n"),
            "`caller_plan` in [[upstream]] does nothing while `required`",
        ),
        (
            format!("{UPSTREAM}key_header = \"x-api-key\"\n"),
            "`key_header` in [[upstream]] does nothing without a [[upstream.key]]",
        ),
        (format!("[metrics]\nper_key = true\n{UPSTREAM}"), "`per_key` in [metrics] does nothing without [keys]"),
        (
            format!("{PLAN}[[account]]\nname = \"a\"\nplan = \"team\"\n{UPSTREAM}"),
            "[[account]] does nothing without [keys]",
        ),
        (format!("{money}{UPSTREAM}"), "a budget in usd never ends while no [[price]] says what tokens cost"),
        (format!("{money}{price}{UPSTREAM}"), ""),
        (format!("{KEYS}{UPSTREAM}access = \"both\"\n{PROVIDER_KEY}"), ""),
    ] {
        let loaded = read_in(&folder, &text).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.warnings.len(), usize::from(!expected.is_empty()), "{text}");
        if let Some(warning) = loaded.warnings.first() {
            assert!(warning.to_string().starts_with(&format!("warning: {expected}")), "{warning}");
        }
    }
    let text = format!("{KEYS}{UPSTREAM}{PROVIDER_KEY}");
    for (file, mode, expected) in [
        ("keys.jsonl", 0o644, "other users of this machine may be able to read who has keys"),
        ("keys.jsonl", 0o660, "other users of this machine may be able to write the file of keys"),
        ("keys.jsonl", 0o640, ""),
        ("keys.secret", 0o640, "other users of this machine may be able to open a file that holds a secret"),
        ("one.key", 0o604, "other users of this machine may be able to open a file that holds a secret"),
    ] {
        let path = folder.0.join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let loaded = read_in(&folder, &text).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.warnings.len(), usize::from(!expected.is_empty()), "{file} {mode:o}");
        assert!(loaded.warnings.iter().all(|warning| warning.to_string().starts_with(&format!("warning: {expected}"))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn the_example_of_the_reference_is_valid() {
    let folder = key_folder("example", &[""]);
    folder.write("openai.key", b"sk-one\n", 0o600);
    let loaded = read_in(&folder, describe::WITH_KEYS).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty() && loaded.config.upstreams[0].access.managed);
    assert!(loaded.config.journal.is_some());
}

#[test]
fn the_journal_has_a_place() {
    let folder = key_folder("journal", &[]);
    for (text, state, expected) in [
        ("", None, None),
        ("", Some("/var/lib/a"), None),
        ("[journal]\nfolder = \"j\"\n", None, Some(folder.0.join("j"))),
        ("[journal]\nfolder = \"/j\"\n", Some("/var/lib/a"), Some("/j".into())),
        ("[journal]\nfolder = \"/j\"\nenabled = false\n", None, None),
        (KEYS, None, Some(folder.0.join("usage"))),
        (KEYS, Some(""), Some(folder.0.join("usage"))),
        (KEYS, Some("/var/lib/a"), Some("/var/lib/a/usage".into())),
        (KEYS, Some("/var/lib/a:/var/lib/b"), Some("/var/lib/a/usage".into())),
        (&format!("{KEYS}[journal]\nenabled = false\n"), None, None),
    ] {
        let variable = |name: &str| state.filter(|_| name == "STATE_DIRECTORY").map(OsString::from);
        let surroundings = Surroundings { base_dir: &folder.0, variable: &variable };
        let loaded = Config::from_surroundings(&with_upstream(text), "nullhop.toml", &surroundings);
        let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
        let found = loaded.config.journal.as_ref().map(|journal| journal.folder.clone());
        assert_eq!(found, expected, "{text} {state:?}");
        // The same on every machine, wherever it keeps its state.
        let plain = read_in(&folder, &with_upstream(text)).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.config.fingerprint, plain.config.fingerprint);
    }
}

/// Letters and digits take turns, so that no eight of them in a row pass for the name of a key.
const CANARY: &str = "q7z9x4k2w8v5j3m6";

/// Valid, and with a canary wherever a value can be free text.
fn canary_file() -> String {
    let c = CANARY;
    format!(
        r#"# {c}
[node]
pop = "{c}" # {c}
[server]
hosts = ["{c}.example", '{c}.test']
public_url = "https://{c}.example/{c}"
[[listener]]
name = "{c}"
address = "127.0.0.1:8443"
[metrics]
address = "0.0.0.0:9464"
token = {{ env = "{c}" }}
models = ["{c}-*"]
[limits]
idle_timeout = "60s"
head_fields = 100
[keys]
file = "{c}.jsonl"
secret = {{ env = "{c}" }}
header = "x-{c}"
plan = "{c}"
[[plan]]
name = "{c}"
rates = ["600 requests/1m", "2M tokens/1h"] # {c}
budgets = ["12.5 usd/day"]
[[account]]
name = "{c}.{c}"
plan = "{c}"
[[price]]
models = ["{c}*"]
upstreams = ["{c}"]
input = "0.25"
output = '2'
[journal]
folder = "{c}"
[[upstream]]
name = "openai"
provider = "openai"
caller_plan = "{c}"
access = "both"
key = [{{ name = "{c}", secret = {{ env = "{c}" }} }}]
prefix = "/{c}/{c}"
hosts = [
  "{c}.internal", # {c}
]
[[upstream]]
name = """{c}"""
provider = 'compatible'
[[upstream.endpoint]]
url = "https://{c}.example/{c}"
weight = 3
"#
    )
}

fn assert_no_canary(said: &str, text: &str) {
    let said = said.to_ascii_lowercase();
    for at in 0..=CANARY.len() - 8 {
        let part = &CANARY[at..at + 8];
        assert!(!said.contains(part), "{part} in:\n{said}\nfrom:\n{text}");
    }
}

#[test]
fn mutated_files_never_panic_and_never_leak() {
    let folder = Folder::new("mutated");
    let record =
        format!("{{\"id\":\"k1\",\"hash\":\"{}\",\"label\":\"{CANARY}\",\"plan\":\"{CANARY}\"}}\n", "ab".repeat(32));
    folder.write(&format!("{CANARY}.jsonl"), record.as_bytes(), 0o600);
    let variable = |_: &str| Some(OsString::from(CANARY.repeat(3)));
    let surroundings = Surroundings { base_dir: &folder.0, variable: &variable };
    let check = |text: &str| match Config::from_surroundings(text, "nullhop.toml", &surroundings) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                assert_no_canary(&format!("{warning}{}", warning.to_json()), text);
            }
            true
        }
        Err(report) => {
            assert!(report.problems() > 0);
            assert_no_canary(&format!("{report}{report:?}{}", report.to_json()), text);
            false
        }
    };
    let valid = canary_file();
    assert!(check(&valid));

    // Each position once: a byte taken out, and some put in.
    for at in 0..valid.len() {
        let mut text = valid.clone();
        text.remove(at);
        check(&text);
        for put in ["\"", "'", "#", "\n", "=", "]", "{", "\\", "\u{e9}"] {
            let mut text = valid.clone();
            text.insert_str(at, put);
            check(&text);
        }
        check(&valid[..at]);
        check(&valid[at..]);
    }

    // Several at once, also whole pieces taken out, doubled or moved. xorshift64, a fixed seed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    const PIECES: &[&str] = &[
        "\"",
        "\"\"\"",
        "'''",
        "'",
        "#",
        "\n",
        "=",
        ".",
        "[",
        "]]",
        "{",
        "}",
        ",",
        "\\",
        "\0",
        "\t",
        "0",
        "-1",
        "true",
        "\u{feff}",
        "\u{1f600}",
        "[limits]",
        "url",
        "1979-05-27",
        "\r",
        "\"\\u00",
    ];
    for _ in 0..20_000 {
        let mut bytes = valid.clone().into_bytes();
        for _ in 0..=random(5) {
            let at = random(bytes.len() + 1);
            let end = (at + random(24)).min(bytes.len());
            match random(4) {
                0 => drop(bytes.drain(at..end)),
                1 => {
                    let piece = PIECES[random(PIECES.len())];
                    drop(bytes.splice(at..at, piece.bytes()));
                }
                2 => {
                    let piece = bytes[at..end].to_vec();
                    let to = random(bytes.len() + 1);
                    drop(bytes.splice(to..to, piece));
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = random(256) as u8;
                    }
                }
            }
        }
        check(&String::from_utf8_lossy(&bytes));
    }
}
