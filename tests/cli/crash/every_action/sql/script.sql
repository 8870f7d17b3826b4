-- Several statements: all of them or none.
CREATE TABLE catalogue (letter text PRIMARY KEY);
INSERT INTO catalogue VALUES ('a'), ('b'), ('c'), ('d');
DO $$ BEGIN RAISE NOTICE 'four letters'; END $$;
INSERT INTO marks (step) VALUES ('script');
