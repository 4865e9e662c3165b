(* T6c, the twin of 13-dual-certificate.md: prices of slots bound every schedule, hence the optimum.

   Modelled: a schedule is any sequence of caches; [S t] is the cache that step t finds, so step t
   attends S t and itself. Tokens are different and older than t, a step may add itself only, and from
   the end of the prompt on at most k are held. It may evict early, late or by any rule. The matrix
   holds integers of any sign; prices are nonnegative integers, one for each decode step p <= t < n.

   Proved ([bound]): the value of every schedule, what its decode steps attend, is at most the dual
   value of the prices. Not proved here: that some prices reach equality. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Sums.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section Dual.

Variables (n p k : nat) (A : nat -> nat -> Z).

Record schedule (S : nat -> seq nat) : Prop := Schedule {
  different : forall t, uniq (S t);
  older : forall t j, j \in S t -> j < t;
  no_return : forall t j, j \in S t.+1 -> (j == t) || (j \in S t);
  within : forall t, p <= t -> size (S t) <= k
}.

Definition value (S : nat -> seq nat) : Z :=
  \Sum_(p <= t < n) (\Sum_(j <- S t) A t j + A t t).

(* The first decode step that can find token j in the cache. *)
Definition birth (j : nat) : nat := maxn j.+1 p.

(* The largest of f 0, ..., f m and 0. *)
Definition most (f : nat -> Z) (m : nat) : Z := foldr Z.max 0%Z [seq f e | e <- iota 0 m.+1].

Definition dual (price : nat -> Z) : Z :=
  (\Sum_(p <= t < n) (Z.of_nat (minn k t) * price t)
   + \Sum_(0 <= j < n)
       most (fun e => \Sum_(birth j <= t < birth j + e) (A t j - price t)) (n - birth j)
   + \Sum_(p <= t < n) A t t)%Z.

Lemma most_ge f m e : e <= m -> (f e <= most f m)%Z.
Proof.
move=> em; have : e \in iota 0 m.+1 by rewrite mem_iota ltnS.
rewrite /most; elim: (iota 0 m.+1) => //= x s IH.
by rewrite inE => /orP[/eqP<-|/IH]; lia.
Qed.

(* What is left by a set of steps without gaps is a sum from its first step on. *)
Lemma prefix_sum (P : pred nat) (g : nat -> Z) b m :
  (forall t, b <= t -> P t.+1 -> P t) ->
  exists2 e, e <= m & \Sum_(b <= t < b + m | P t) g t = \Sum_(b <= t < b + e) g t.
Proof.
move=> closed; elim: m => [|m [e em IH]].
  by exists 0; rewrite // addn0 !big_geq.
case Pm: (P (b + m)); last first.
  by exists e; rewrite ?(leqW em) // addnS big_mkcond big_nat_recr ?leq_addr //= Pm -big_mkcond IH Z.add_0_r.
have down d : d <= m -> P (b + (m - d)).
  elim: d => [|d IHd] dm; first by rewrite subn0.
  apply: closed; first exact: leq_addr.
  by rewrite -addnS subnSK // IHd // ltnW.
exists m.+1 => //; rewrite big_nat_cond [RHS]big_nat_cond; apply: eq_bigl => t.
rewrite andbT; case/boolP: (_ <= _ < _) => //= /andP[bt]; rewrite addnS ltnS => tm.
suff <- : b + (m - (m - (t - b))) = t by rewrite down // leq_subr.
by rewrite subKn ?subnKC // leq_subLR.
Qed.

(* A token's steps in a cache have no gaps: what it earns at the prices is at most its maximum. *)
Lemma earns S price j : schedule S -> j < n ->
  (\Sum_(p <= t < n | j \in S t) (A t j - price t) <=
   most (fun e => \Sum_(birth j <= t < birth j + e) (A t j - price t)) (n - birth j))%Z.
Proof.
move=> ok jn; pose g t := (A t j - price t)%Z.
pose F e := \Sum_(birth j <= t < birth j + e) g t.
have closed t : birth j <= t -> j \in S t.+1 -> j \in S t.
  rewrite /birth geq_max => /andP[jt _] /(no_return ok)/orP[/eqP e|//].
  by rewrite e ltnn in jt.
have [bn|nb] := leqP (birth j) n; last first.
  (* too young to be found by any decode step *)
  rewrite big_nat_cond big_pred0; last first.
    move=> t; apply/negP => /andP[/andP[pt tn] /(older ok) jt].
    move: nb; rewrite /birth ltnNge geq_max (leq_trans jt (ltnW tn)) /=.
    by rewrite (leq_trans pt (ltnW tn)).
  by have := @most_ge F _ _ (leq0n (n - birth j)); rewrite {1}/F addn0 big_geq.
have pb : p <= birth j by apply: leq_maxr.
rewrite (big_cat_nat _ _ _ pb bn) /= big_nat_cond big_pred0 ?Z.add_0_l; last first.
  move=> t; apply/negP => /andP[/andP[pt tb] /(older ok) jt].
  by move: tb; rewrite /birth ltnNge geq_max jt pt.
have [e em] := prefix_sum g (n - birth j) closed; rewrite subnKC // => ->.
  exact: (@most_ge F _ _ em).
Qed.

Theorem bound S price : schedule S -> (forall t, (0 <= price t)%Z) -> (value S <= dual price)%Z.
Proof.
move=> ok pos; rewrite /value /dual sum_add.
apply: (proj1 (Z.add_le_mono_r _ _ _)).
(* at its price every slot in use is paid for *)
have split t : (\Sum_(j <- S t) A t j =
    \Sum_(j <- S t) (A t j - price t) + Z.of_nat (size (S t)) * price t)%Z.
  by rewrite sum_sub sum_const Z.sub_add.
rewrite (eq_bigr _ (fun t _ => split t)) sum_add Z.add_comm.
apply: Z.add_le_mono.
  apply: sum_le => t; rewrite mem_index_iota => /andP[pt _] _.
  apply: Z.mul_le_mono_nonneg_r => //; apply: leZ; rewrite leq_min (within ok) //=.
  rewrite -[X in _ <= X](size_iota 0); apply: uniq_leq_size; first exact: (different ok).
  by move=> j /(older ok); rewrite mem_iota.
(* sum over tokens first *)
have by_token t : p <= t < n -> \Sum_(j <- S t) (A t j - price t) =
    \Sum_(0 <= j < n | j \in S t) (A t j - price t).
  move=> /andP[_ tn]; rewrite -[RHS]big_filter; apply: perm_big; apply: uniq_perm.
  - exact: (different ok).
  - by rewrite filter_uniq // iota_uniq.
  move=> j; rewrite mem_filter mem_index_iota /=.
  by case jS: (j \in S t) => //=; rewrite (ltn_trans (older ok jS)).
rewrite (eq_big_nat _ _ by_token) (exchange_big_dep xpredT) //=.
by apply: sum_le => j; rewrite mem_index_iota => /andP[_ jn] _; apply: earns.
Qed.

End Dual.

Print Assumptions bound.
