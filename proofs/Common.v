(* What every machine-checked proof of this folder shares: tokens, ranks, and a cache that really
   evicts.

   A token is its position, a natural number. At step t the tokens are compared by a strict total
   order [low t]: [low t u v] says that u is ranked below v. A cache is a list of different tokens.
   An eviction removes the lowest token, again and again, until k are left ([trim]); nothing is
   assumed about which tokens that leaves. Lemma [mem_trim] proves it: a token stays exactly if it
   was there and fewer than k of the others rank above it.

   [store k t] is the cache of budget k before step t, which is S_{t-1} in the prose; step t adds
   the token t, attends ([attended k t], G_t in the prose), and evicts if [evicts t] holds. *)

From mathcomp Require Import all_ssreflect.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(* A strict total order on the tokens. *)
Record strict_order (low : rel nat) : Prop := StrictOrder {
  low_irr : irreflexive low;
  low_trans : transitive low;
  low_total : forall u v, u != v -> low u v || low v u
}.

Section Eviction.

Variable low : rel nat.

(* The lowest token of x :: s. *)
Fixpoint lowest (x : nat) (s : seq nat) : nat :=
  if s is y :: s' then lowest (if low y x then y else x) s' else x.

Definition drop_lowest (s : seq nat) : seq nat :=
  if s is x :: s' then rem (lowest x s') s else [::].

(* Remove the lowest until k are left. *)
Definition trim (k : nat) (s : seq nat) : seq nat := iter (size s - k) drop_lowest s.

(* How many of s rank above x. *)
Definition above (x : nat) (s : seq nat) : nat := count (low x) s.

Hypothesis order : strict_order low.

Let irr := low_irr order.
Let trans := low_trans order.
Let total := low_total order.

Lemma low_asym u v : low u v -> low v u = false.
Proof. by move=> uv; apply/negP => vu; have := trans uv vu; rewrite irr. Qed.

Lemma lowest_mem x s : lowest x s \in x :: s.
Proof.
elim: s x => [|y s IH] x /=; first by rewrite inE.
have := IH (if low y x then y else x).
by case: ifP => _; rewrite !inE => /orP[->|->]; rewrite ?orbT.
Qed.

Lemma lowest_low x s v : v \in x :: s -> v != lowest x s -> low (lowest x s) v.
Proof.
elim: s x v => [|y s IH] x v; first by rewrite inE => /eqP->; rewrite eqxx.
rewrite [lowest _ _]/=; set z := if low y x then y else x => vin vz.
have [vzs|] := boolP (v \in z :: s); first exact: IH.
rewrite inE negb_or => /andP[nvz nvs].
have zv : low z v.
  move: vin nvz; rewrite !inE (negbTE nvs) orbF /z.
  case: ifP => yx /orP[]/eqP->; rewrite ?eqxx // => nyx.
  by move: (total nyx); rewrite yx.
have [<-//|zl] := eqVneq z (lowest z s).
by apply: trans zv; apply: IH; rewrite // mem_head.
Qed.

Lemma size_drop_lowest s : size (drop_lowest s) = (size s).-1.
Proof. by case: s => // x s; rewrite /drop_lowest size_rem ?lowest_mem. Qed.

Lemma drop_lowest_uniq s : uniq s -> uniq (drop_lowest s).
Proof. by case: s => // x s us; apply: rem_uniq. Qed.

Lemma drop_lowest_subseq s : subseq (drop_lowest s) s.
Proof. by case: s => // x s; apply: rem_subseq. Qed.

Lemma size_trim k s : size (trim k s) = minn k (size s).
Proof.
rewrite /trim; set m := size s - k.
have -> : size (iter m drop_lowest s) = size s - m.
  by elim: m => [|m IH]; rewrite ?subn0 // iterS size_drop_lowest IH -subnS.
rewrite /m; case: (leqP (size s) k) => h; first by rewrite (eqP h) subn0.
by rewrite subKn // ltnW.
Qed.

Lemma trim_uniq k s : uniq s -> uniq (trim k s).
Proof. by move=> us; rewrite /trim; elim: (_ - _) => //= m; apply: drop_lowest_uniq. Qed.

Lemma trim_subseq k s : subseq (trim k s) s.
Proof.
rewrite /trim; elim: (_ - _) => //= m IH.
exact: subseq_trans (drop_lowest_subseq _) IH.
Qed.

Lemma trim_small k s : size s <= k -> trim k s = s.
Proof. by rewrite /trim -subn_eq0 => /eqP->. Qed.

Lemma trim_step k s : k < size s -> trim k s = trim k (drop_lowest s).
Proof.
move=> ks; rewrite /trim size_drop_lowest -iterSr; congr iter.
by case: (size s) ks => // m; rewrite ltnS => /subSn->.
Qed.

(* A token stays exactly if fewer than k rank above it. *)
Lemma mem_trim k s x : uniq s -> (x \in trim k s) = (x \in s) && (above x s < k).
Proof.
move=> us; have [m] := ubnP (size s); elim: m s us => // m IH s us; rewrite ltnS => sm.
have abound : x \in s -> above x s < size s.
  move=> xs; rewrite -(count_predC (low x) s) -addn1 leq_add2l -has_count.
  by apply/hasP; exists x; rewrite //= irr.
have [sk|ks] := leqP (size s) k.
  rewrite trim_small //; case xs: (x \in s) => //=.
  by rewrite (leq_trans (abound xs)).
rewrite trim_step // IH; [|exact: drop_lowest_uniq|]; last first.
  by rewrite size_drop_lowest; case: (size s) sm ks.
have [l [lin ll ->]] : exists l,
    [/\ l \in s, forall v, v \in s -> v != l -> low l v & drop_lowest s = rem l s].
  case: s ks {us sm abound} => // y s _; exists (lowest y s).
  by split=> // [|v]; [apply: lowest_mem|apply: lowest_low].
have ul : uniq (rem l s) by apply: rem_uniq.
have pl := perm_to_rem lin.
rewrite mem_rem_uniq // [_ \in predD1 _ _]inE; have [->|xl] := eqVneq x l.
  rewrite lin; apply/esym/negbTE; rewrite -leqNgt.
  suff -> : above l s = (size s).-1 by case: (size s) ks.
  rewrite /above (permP pl) /= irr add0n -(size_rem lin); apply/eqP; rewrite -all_count.
  by apply/allP => v; rewrite mem_rem_uniq // => /andP[vl vs]; apply: ll.
rewrite /=; have [xs|/negbTE xs] := boolP (x \in s); rewrite ?xs //=.
by rewrite /above (permP pl (low x)) /= (low_asym (ll _ xs xl)) add0n.
Qed.

Lemma above_perm x s s' : perm_eq s s' -> above x s = above x s'.
Proof. by rewrite /above => /permP->. Qed.

Lemma above_sub x s s' : uniq s -> {subset s <= s'} -> above x s <= above x s'.
Proof.
move=> us ss; rewrite /above -!size_filter; apply: uniq_leq_size; first exact: filter_uniq.
by move=> v; rewrite !mem_filter => /andP[-> /ss].
Qed.

Lemma trim_perm k s s' : uniq s -> perm_eq s s' -> perm_eq (trim k s) (trim k s').
Proof.
move=> us ss; have us' : uniq s' by rewrite -(perm_uniq ss).
apply: uniq_perm; try exact: trim_uniq.
by move=> v; rewrite !mem_trim // (perm_mem ss) (above_perm _ ss).
Qed.

(* Every token that goes ranks below every token that stays. *)
Lemma trim_out_low k s x y :
  uniq s -> x \in s -> x \notin trim k s -> y \in trim k s -> low x y.
Proof.
move=> us xs; rewrite !mem_trim // xs /= -leqNgt => kx /andP[ys yk].
have xy : x != y by apply: contraL yk => /eqP<-; rewrite -leqNgt.
case/orP: (total xy) => // yx.
suff : above x s <= above y s by rewrite leqNgt (leq_trans yk kx).
by apply: sub_count => v; apply: trans.
Qed.

End Eviction.

(* A run. *)
Section Run.

Variable low : nat -> rel nat.   (* the order of each step *)
Variable evicts : pred nat.      (* the steps at which the rule evicts, the same for all budgets *)

Fixpoint store (k t : nat) : seq nat :=
  if t is t'.+1 then
    let G := rcons (store k t') t' in if evicts t' then trim (low t') k G else G
  else [::].

Definition attended (k t : nat) : seq nat := rcons (store k t) t.

Lemma storeS k t :
  store k t.+1 = if evicts t then trim (low t) k (attended k t) else attended k t.
Proof. by []. Qed.

Lemma store_subseq_attended k t : subseq (store k t.+1) (attended k t).
Proof. by rewrite storeS; case: ifP => // _; apply: trim_subseq. Qed.

Lemma store_lt k t x : x \in store k t -> x < t.
Proof.
elim: t => // t IH /(mem_subseq (store_subseq_attended k t)).
by rewrite mem_rcons inE => /orP[/eqP->//|/IH/ltnW]; rewrite ltnS.
Qed.

Lemma store_uniq k t : uniq (store k t).
Proof.
elim: t => // t IH; apply: subseq_uniq (store_subseq_attended k t) _.
by rewrite rcons_uniq IH andbT; apply/negP => /store_lt; rewrite ltnn.
Qed.

Lemma attended_uniq k t : uniq (attended k t).
Proof. by rewrite rcons_uniq store_uniq andbT; apply/negP => /store_lt; rewrite ltnn. Qed.

(* The step after which token j is no longer cached, of the steps before n; n if it stays. *)
Definition departure (k n j : nat) : nat :=
  j + find (fun t => j \notin store k t.+1) (iota j (n - j)).

Lemma departure_spec k n j : j < n -> j \notin store k n ->
  let t := departure k n j in [/\ j <= t < n, j \in attended k t & j \notin store k t.+1].
Proof.
move=> jn out; rewrite /departure; set P := fun t => _; set s := iota _ _; set d := find P s.
have ss : size s = n - j by rewrite size_iota.
have nths i : i < n - j -> nth 0 s i = j + i by move=> i_; rewrite nth_iota.
have hP : has P s.
  apply/hasP; exists n.-1; last by rewrite /P prednK // (leq_ltn_trans _ jn).
  by rewrite mem_iota subnKC ?(ltnW jn) //; case: n jn {out s ss nths d} => // n; rewrite !ltnS leqnn => ->.
have dn : d < n - j by rewrite -ss -has_find.
have out' : j \notin store k (j + d).+1 by have := nth_find 0 hP; rewrite -/d nths.
split=> //; first by rewrite leq_addr -ltn_subRL.
rewrite mem_rcons inE; case: (posnP d) => [->|d0]; first by rewrite addn0 eqxx.
have := @before_find _ 0 P s d.-1; rewrite -/d prednK // nths ?(leq_ltn_trans (leq_pred d)) //.
by rewrite /P -addnS prednK // => /(_ (leqnn _))/negbFE->; rewrite orbT.
Qed.

(* As long as no step had to choose, all tokens are there. *)
Lemma store_all k t : (forall s, s < t -> evicts s -> s < k) -> store k t = iota 0 t.
Proof.
elim: t => // t IH h; rewrite storeS /attended IH => [|s st]; last by apply: h; apply: ltnW.
have e : rcons (iota 0 t) t = iota 0 t.+1 by rewrite -addn1 iotaD cats1.
by rewrite e; case: ifP => // /(h _ (ltnSn t)) tk; rewrite trim_small // size_iota.
Qed.

End Run.
