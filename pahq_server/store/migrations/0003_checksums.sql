-- Checksums of rows, see checksums.py. Rows that are there already get those of what they hold.
ALTER TABLE jobs ADD COLUMN fixed_sum BLOB;  -- of what was asked for
ALTER TABLE jobs ADD COLUMN state_sum BLOB;  -- of where it stands
ALTER TABLE jobs ADD COLUMN prompts_sum BLOB;
ALTER TABLE results ADD COLUMN outcome_sum BLOB;  -- of what lists of jobs tell
ALTER TABLE results ADD COLUMN checksum BLOB;
ALTER TABLE tokens ADD COLUMN checksum BLOB;

-- Texts as bytes: damage may have made them something that is no text.
UPDATE jobs SET
    fixed_sum = row_checksum('jobs.fixed', id, CAST(name AS BLOB), CAST(user AS BLOB), CAST(request_id AS BLOB),
        payload, CAST(spec AS BLOB), total, tokens, CAST(revision AS BLOB), content, log, created),
    state_sum = row_checksum('jobs.state', id, state, started, ended, CAST(error AS BLOB), decided, kept, metric,
        evaluations, dropped, charged, deaths),
    prompts_sum = row_checksum('jobs.prompts', id, CAST(prompts AS BLOB));
UPDATE results SET
    outcome_sum = row_checksum('results.outcome', log, value, full_model, empty_circuit, CAST(run AS BLOB)),
    checksum = row_checksum('results', log, value, full_model, empty_circuit, kept, CAST(graph AS BLOB),
        CAST(metric AS BLOB), CAST(request AS BLOB), CAST(run AS BLOB));
UPDATE tokens SET
    checksum = row_checksum('tokens', CAST(id AS BLOB), digest, CAST(user AS BLOB), CAST(scope AS BLOB), created,
        expires, revoked);

-- From here on, the data of a run of verdicts ends with its checksum.
UPDATE verdicts SET data = sealed_run(log, first, data);
