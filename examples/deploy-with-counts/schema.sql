-- A small CRM to try playbooks/deploy-with-counts.yaml on.
CREATE TABLE clients (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text,
    stage text NOT NULL DEFAULT 'lead',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tasks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client_id bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    title text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE chat_messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client_id bigint NOT NULL REFERENCES clients ON DELETE CASCADE,
    body text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO clients (email, stage, created_at)
SELECT format('client%s@example.com', n), (ARRAY['lead', 'offer', 'won'])[1 + n % 3], now() - n * interval '1 hour'
  FROM generate_series(1, 40) n;

INSERT INTO tasks (client_id, title, created_at)
SELECT 1 + n % 40, format('Call back %s', n), now() - n * interval '1 minute'
  FROM generate_series(1, 120) n;

INSERT INTO chat_messages (client_id, body, created_at)
SELECT 1 + n % 40, format('Message %s', n), now() - n * interval '10 seconds'
  FROM generate_series(1, 900) n;
