Require Import Lia Lra Psatz Ring Field.
