-- The shop that playbooks/order-import.yaml loads orders into. Each table has a column that
-- says which run brought a row; rows that the shop itself writes leave it NULL.

CREATE TABLE customers (
    id         bigint PRIMARY KEY,
    name       text NOT NULL,
    email      text,
    phone      text,
    import_run text
);

CREATE TABLE orders (
    order_no    text PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers (id),
    placed_on   date NOT NULL,
    status      text NOT NULL CHECK (status IN ('open', 'paid', 'shipped', 'cancelled')),
    total       numeric(12,2) NOT NULL CHECK (total >= 0),
    note        text,
    import_run  text
);

CREATE TABLE order_items (
    order_no   text NOT NULL REFERENCES orders (order_no),
    position   integer NOT NULL,
    article    text NOT NULL,
    quantity   integer NOT NULL CHECK (quantity > 0),
    price      numeric(10,2) NOT NULL CHECK (price >= 0),
    import_run text,
    PRIMARY KEY (order_no, position)
);

CREATE INDEX orders_customer ON orders (customer_id);
CREATE INDEX customers_import_run ON customers (import_run) WHERE import_run IS NOT NULL;
CREATE INDEX orders_import_run ON orders (import_run) WHERE import_run IS NOT NULL;
CREATE INDEX order_items_import_run ON order_items (import_run) WHERE import_run IS NOT NULL;

-- The shop's own data, which no import and no rollback may touch.
INSERT INTO customers (id, name, email) SELECT n, 'Regular ' || n, 'regular' || n || '@example.com' FROM generate_series(1, 20) n;
INSERT INTO orders (order_no, customer_id, placed_on, status, total) SELECT 'S-' || lpad(n::text, 6, '0'), n, '2026-01-15', 'paid', 10 FROM generate_series(1, 20) n;
INSERT INTO order_items (order_no, position, article, quantity, price) SELECT order_no, 1, 'ART-0001', 1, 10 FROM orders;
