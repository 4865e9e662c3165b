(* T4, the twin of 09-drift-certificate.md: the induction with signed growth factors.

   Modelled: [F i S] is f_i(S), [S i] the cache after step i, [opt i] is opt_i, all rational; i_0 is
   the first step with a full cache. The only assumption on the policy is f_i(S_i) >= f_i(S_{i-1}).

   Proved:
   - [one_step]: ratio_i >= ratio_{i-1} g_i / G_i, with g_i and G_i as they are, not clipped at 1;
   - [certificate]: multiplied up, ratio_i >= cert_i;
   - [certificate_loses]: cert_i is ratio_i times the product of f_j(S_{j-1}) / f_j(S_j), so what it
     loses is the product of the gains of the swaps;
   - [setting_P]: in setting P (SettingP.v) the assumption on the policy holds, opt is the largest value
     of at most k tokens, no value falls, and at i_0 the ratio is 1. *)

From Coq Require Import QArith Lqa ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums SettingP.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Open Scope nat_scope.

Section Drift.

Variables (T : Type) (F : nat -> T -> Q) (S : nat -> T) (opt : nat -> Q) (i0 : nat).

Definition ratio i : Q := F i (S i) / opt i.
Definition g i : Q := F i (S i.-1) / F i.-1 (S i.-1).
Definition G i : Q := opt i / opt i.-1.

(* cert_i at i = i_0 + m *)
Fixpoint cert m : Q :=
  if m is m'.+1 then (cert m' * (g (i0 + m) / G (i0 + m)))%Q else ratio i0.

Fixpoint kept m : Q :=
  if m is m'.+1 then (kept m' * (F (i0 + m) (S (i0 + m).-1) / F (i0 + m) (S (i0 + m))))%Q else 1%Q.

Theorem one_step i :
  (F i (S i.-1) <= F i (S i))%Q -> (0 < F i.-1 (S i.-1))%Q -> (0 < opt i)%Q -> (0 < opt i.-1)%Q ->
  (ratio i.-1 * (g i / G i) <= ratio i)%Q.
Proof.
rewrite /ratio /g /G => swap f0 o0 o1.
have -> : (F i.-1 (S i.-1) / opt i.-1 * (F i (S i.-1) / F i.-1 (S i.-1) / (opt i / opt i.-1)) ==
           F i (S i.-1) / opt i)%Q by field; repeat split; lra.
by apply: Qmult_le_compat_r => //; apply: Qinv_le_0_compat; lra.
Qed.

Hypothesis swap : forall i, i0 < i -> (F i (S i.-1) <= F i (S i))%Q.
Hypothesis held_pos : forall i, i0 <= i -> (0 < F i (S i))%Q.
Hypothesis old_pos : forall i, i0 < i -> (0 <= F i (S i.-1))%Q.
Hypothesis opt_pos : forall i, i0 <= i -> (0 < opt i)%Q.

Theorem certificate m : (cert m <= ratio (i0 + m))%Q.
Proof.
elim: m => [|m IH]; first by rewrite addn0 /=; lra.
have pre : (i0 + m.+1).-1 = i0 + m by rewrite addnS.
have late : i0 < i0 + m.+1 by rewrite addnS ltnS leq_addr.
have step := @one_step (i0 + m.+1) (swap late); rewrite pre in step.
apply: Qle_trans (step _ _ _); try by (apply: held_pos || apply: opt_pos); rewrite ?leq_addr.
apply: Qmult_le_compat_r => //.
have h1 := held_pos (leq_addr m i0); have h2 := opt_pos (leq_addr m i0).
have h3 := opt_pos (leq_addr m.+1 i0); have h4 := old_pos late.
rewrite pre in h4; rewrite /g /G /Qdiv pre.
apply: Qmult_le_0_compat; last first.
  apply: Qinv_le_0_compat; apply: Qmult_le_0_compat; first by lra.
  by apply: Qinv_le_0_compat; lra.
by apply: Qmult_le_0_compat => //; apply: Qinv_le_0_compat; lra.
Qed.

Theorem certificate_loses m : (cert m == ratio (i0 + m) * kept m)%Q.
Proof.
elim: m => [|m IH]; first by rewrite addn0 /=; ring.
have pre : (i0 + m.+1).-1 = i0 + m by rewrite addnS.
have h1 := held_pos (leq_addr m i0); have h2 := opt_pos (leq_addr m i0).
have h3 := opt_pos (leq_addr m.+1 i0); have h4 := held_pos (leq_addr m.+1 i0).
rewrite [cert _]/= [kept _]/= IH /g /G /ratio pre; field; repeat split; lra.
Qed.

End Drift.

Section InSettingP.

Variables (A : nat -> nat -> Z) (p k : nat).
Hypothesis pos : forall t s, (0 <= A t s)%Z.
Hypothesis prompt : 0 < p.

Notation i0 := (full_from p k).
Notation cache := (cache A p k).
Notation top := (top A k).
Notation mass := (mass A).

Lemma top_best i (O : seq nat) : uniq O -> (forall o, o \in O -> o <= i) -> size O <= k ->
  (mass i O <= mass i (top i))%Z.
Proof.
move=> uO oi Ok; have ut : uniq (top i) by apply: trim_uniq; apply: iota_uniq.
have sz : size O <= size (top i).
  rewrite size_trim size_iota leq_min Ok -[X in _ <= X](size_iota 0); apply: uniq_leq_size => // o /oi.
  by rewrite mem_iota ltnS.
have := @exchange_bound (top i) O (score A i) (score A i) ut uO sz (fun s => @score_ge0 A pos i s).
rewrite [X in (_ <= _ + X)%Z]big1 => [|o _]; last by lia.
rewrite Z.add_0_r; apply=> o s oO out sin; apply: by_score_le.
apply: (trim_out_low (below_order A i)) out sin; first exact: iota_uniq.
by rewrite mem_iota ltnS oi.
Qed.

Theorem setting_P i :
  [/\ i0 < i -> (mass i (cache i.-1) <= mass i (cache i))%Z,
      forall O, uniq O -> (forall o, o \in O -> o <= i) -> size O <= k -> (mass i O <= mass i (top i))%Z,
      (mass i.-1 (cache i.-1) <= mass i (cache i.-1))%Z &
      mass i0 (cache i0) = mass i0 (top i0)].
Proof.
split; [|exact: top_best| |].
- case: i => // i fi; rewrite [i.+1.-1]/=.
  have := @exchange_bound (cache i.+1) (cache i) (score A i.+1) (score A i.+1).
  rewrite [X in (_ <= _ + X)%Z]big1 => [|o _]; last by lia.
  have pk : maxn p k <= i.+1 by move: fi; rewrite /full_from; case: maxn.
  have /andP[pi ki] : (p <= i.+1) && (k <= i.+1) by rewrite -geq_max.
  rewrite Z.add_0_r; apply; try exact: cache_uniq; first by rewrite !size_before pi (leqW pi) !(minn_idPl _) // leqW.
    exact: score_ge0.
  move=> o s oin oout sin; apply: by_score_le.
  have ev : from_prompt_end p i.+1 by rewrite /from_prompt_end leqW.
  move: oout sin; rewrite /cache /before storeS ev => oout sin.
  apply: (trim_out_low (below_order A i.+1)) oout sin; first exact: attended_uniq.
  by rewrite mem_rcons inE oin orbT.
- by apply: sum_le => s _ _; apply: score_grows => //; apply: leq_pred.
- apply: perm_big; apply: uniq_perm; [exact: cache_uniq|by apply: trim_uniq; apply: iota_uniq|].
  exact: cache_start.
Qed.

End InSettingP.

Print Assumptions one_step.
Print Assumptions certificate.
Print Assumptions certificate_loses.
Print Assumptions setting_P.
