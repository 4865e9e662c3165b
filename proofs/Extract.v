(* The model as a program: what the proofs speak about, extracted to OCaml.

   The theorems are about the cache of Common.v and the loop of t14_inclusion.v; h2osim is Python. This
   file makes a program of both, for a table of integer scores, a window of newest tokens that are
   protected, and any list of steps that evict; tests/test_proofs_coq.py compares its answers with the
   engine that defines h2osim on drawn traces. Nothing is mapped to OCaml's own numbers: positions are
   unary, scores are Coq's binary integers.

   The definitions of the model compute a cache anew from its first step whenever they are asked;
   [history] and [stack_history] keep what they have computed. Proved: they give the same
   ([departures_spec]), and the stack gives what each budget's own run gives ([stack_agrees]). *)

From Coq Require Import ZArith.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums SettingP t14_inclusion.
From Coq Require Extraction ExtrOcamlBasic.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(* The newest [recent] tokens rank above all others, of two such the newer above the older. *)
Definition guarded (recent : nat) (a : nat -> Z) (t : nat) : rel nat := fun u v =>
  let pu := t - u < recent in
  let pv := t - v < recent in
  if pu && pv then u < v else if pu || pv then pv else by_score a u v.

Lemma guarded_order recent a t : strict_order (guarded recent a t).
Proof.
have [irr trans tot] := by_score_order a.
split.
- by move=> u; rewrite /guarded; case: (_ < recent); rewrite ?ltnn ?irr.
- move=> v u w; rewrite /guarded.
  case: (t - u < _); case: (t - v < _); case: (t - w < _) => //=; first exact: ltn_trans.
  exact: trans.
- move=> u v uv; rewrite /guarded; case: (t - u < _); case: (t - v < _) => //=.
    by rewrite -neq_ltn.
  exact: tot.
Qed.

Section Machine.

Variables (low : nat -> rel nat) (evicts : pred nat).
Hypothesis order : forall t, strict_order (low t).

Definition first_out (held : nat -> nat -> bool) (n j : nat) : nat :=
  j + find (fun t => ~~ held t.+1 j) (iota j (n - j)).

Definition advance (k t : nat) (s : seq nat) : seq nat :=
  let G := rcons s t in if evicts t then trim (low t) k G else G.

Fixpoint history (k n : nat) : seq (seq nat) :=
  if n is m.+1 then let h := history k m in rcons h (advance k m (last [::] h)) else [:: [::]].

Definition departures (n k : nat) : seq nat :=
  let h := history k n in
  [seq first_out (fun t j => j \in nth [::] h t) n j | j <- iota 0 n].

Definition advance_stack (t : nat) (state : seq nat * seq nat) : seq nat * seq nat :=
  let: (stack, pending) := state in
  let pending := rcons pending t in
  if evicts t then
    (if stack is [::] then sorted_pile (low t) pending else pour (low t) stack pending, [::])
  else (stack, pending).

Fixpoint stack_history (n : nat) : seq (seq nat * seq nat) :=
  if n is m.+1 then
    let h := stack_history m in rcons h (advance_stack m (last ([::], [::]) h))
  else [:: ([::], [::])].

Definition stack_departures (n : nat) (budgets : seq nat) : seq (seq nat) :=
  let h := stack_history n in
  [seq [seq first_out (fun t j => let: (stack, pending) := nth ([::], [::]) h t in
                                  (j \in pending) || (index j stack < k)) n j
       | j <- iota 0 n] | k <- budgets].

Lemma history_spec k n :
  [/\ size (history k n) = n.+1, last [::] (history k n) = store low evicts k n &
      forall t, t <= n -> nth [::] (history k n) t = store low evicts k t].
Proof.
elim: n => [|n [sz la nt]]; first by split=> // t; rewrite leqn0 => /eqP->.
split; first by rewrite /= size_rcons sz.
  by rewrite /= last_rcons la.
move=> t; rewrite leq_eqVlt => /orP[/eqP->|]; rewrite /= nth_rcons sz.
  by rewrite ltnn eqxx la.
by move=> tn; rewrite tn nt.
Qed.

Lemma stack_history_spec n :
  [/\ size (stack_history n) = n.+1, last ([::], [::]) (stack_history n) = loop low evicts n &
      forall t, t <= n -> nth ([::], [::]) (stack_history n) t = loop low evicts t].
Proof.
elim: n => [|n [sz la nt]]; first by split=> // t; rewrite leqn0 => /eqP->.
split; first by rewrite /= size_rcons sz.
  by rewrite /= last_rcons la.
move=> t; rewrite leq_eqVlt => /orP[/eqP->|]; rewrite /= nth_rcons sz.
  by rewrite ltnn eqxx la.
by move=> tn; rewrite tn nt.
Qed.

Lemma first_out_eq f g n j :
  (forall t, j < t <= n -> f t j = g t j) -> first_out f n j = first_out g n j.
Proof.
move=> fg; rewrite /first_out; congr (_ + _); apply: eq_in_find => t.
rewrite mem_iota => /andP[jt]; have [nj|jn] := leqP n j.
  by move: nj; rewrite -subn_eq0 => /eqP->; rewrite addn0 ltnNge jt.
rewrite (subnKC (ltnW jn)) => tn; congr (~~ _); apply: fg; rewrite ltnS jt; exact: tn.
Qed.

Theorem departures_spec n k :
  departures n k = [seq departure low evicts k n j | j <- iota 0 n].
Proof.
apply: eq_map => j; apply: (first_out_eq (g := fun t j => j \in store low evicts k t)).
by move=> t /andP[_ tn]; have [_ _ ->] := history_spec k n.
Qed.

Theorem stack_agrees n budgets : stack_departures n budgets = [seq departures n k | k <- budgets].
Proof.
apply: eq_map => k; apply/eq_in_map => j _; apply: first_out_eq => t /andP[jt tn].
have [_ _ ->] := history_spec k n => //; have [_ _ ->] := stack_history_spec n => //.
by rewrite (depth_is_least_budget order) //; case: loop.
Qed.

End Machine.

Definition entry (table : seq (seq Z)) (t s : nat) : Z := nth 0%Z (nth [::] table t) s.

Definition model_low table recent t := guarded recent (score (entry table) t) t.

(* The step after which each budget loses each token: each budget by its own run, and all by one stack. *)
Definition by_runs (table : seq (seq Z)) (recent : nat) (steps : seq bool) (budgets : seq nat) :=
  [seq departures (model_low table recent) (nth false steps) (size table) k | k <- budgets].

Definition by_stack (table : seq (seq Z)) (recent : nat) (steps : seq bool) (budgets : seq nat) :=
  stack_departures (model_low table recent) (nth false steps) (size table) budgets.

Print Assumptions departures_spec.
Print Assumptions stack_agrees.

Extraction Language OCaml.
Extraction "model.ml" by_runs by_stack.
