(* Setting P of the prose: full scores, no protected tokens, the lowest accumulated score goes.

   [score i s] is a_i(s), what token s has received from the queries up to step i; the matrix holds
   integers, which are the recorded scores in units of 2^-24. [below i] is the score order of step i:
   the lower score, and of equals the older token. [cache k i] is S_i, the cache after step i, and
   [top k i] is OPT_i, the k highest of all tokens so far. Nothing is evicted before step p - 1. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(* The order of a score: of equals the older token is the lower. *)
Definition by_score (a : nat -> Z) : rel nat :=
  fun u v => (a u <? a v)%Z || (a u =? a v)%Z && (u < v).

Lemma by_score_order a : strict_order (by_score a).
Proof.
have lt_not_eq (x y : Z) : (x <? y)%Z -> (x =? y)%Z = false.
  by move/Z.ltb_spec0 => h; apply/Z.eqb_neq; lia.
split.
- by move=> u; rewrite /by_score Z.ltb_irrefl Z.eqb_refl ltnn.
- move=> v u w; rewrite /by_score.
  case/orP=> [/Z.ltb_spec0 uv|/andP[/Z.eqb_spec uv uv']];
    case/orP=> [/Z.ltb_spec0 vw|/andP[/Z.eqb_spec vw vw']].
  + by apply/orP; left; apply/Z.ltb_spec0; lia.
  + by apply/orP; left; apply/Z.ltb_spec0; lia.
  + by apply/orP; left; apply/Z.ltb_spec0; lia.
  + by apply/orP; right; rewrite (ltn_trans uv' vw') andbT; apply/Z.eqb_spec; lia.
- move=> u v uv; rewrite /by_score; case: (Z.lt_trichotomy (a u) (a v)) => [h|[h|h]].
  + by apply/orP; left; apply/orP; left; apply/Z.ltb_spec0.
  + rewrite h Z.ltb_irrefl Z.eqb_refl /=; move: uv; rewrite neq_ltn; by case/orP => ->; rewrite ?orbT.
  + by apply/orP; right; apply/orP; left; apply/Z.ltb_spec0.
Qed.

Lemma by_score_le a u v : by_score a u v -> (a u <= a v)%Z.
Proof. by case/orP => [/Z.ltb_spec0|/andP[/Z.eqb_spec]]; lia. Qed.

(* Where a set O of at most as many tokens as S is worth more than S: lists S and O of different
   tokens, a value f that is not negative, and c, a lower bound of every value in S for each token
   that S misses. *)
Lemma pair_sum (x y : seq nat) (c f : nat -> Z) :
  size x <= size y -> {in x & y, forall o s, (c o <= f s)%Z} -> {in y, forall s, (0 <= f s)%Z} ->
  (\Sum_(o <- x) c o <= \Sum_(s <- y) f s)%Z.
Proof.
elim: x y => [|o x IH] y; first by move=> _ _ pos; rewrite big_nil; apply: sum_ge0 => s /pos.
case: y => // s y; rewrite ltnS => sz cf pos; rewrite !big_cons.
have h1 := cf o s (mem_head _ _) (mem_head _ _).
suff : (\Sum_(o <- x) c o <= \Sum_(s <- y) f s)%Z by lia.
apply: IH => // [o' s' ox sy|s' sy]; first by apply: cf; rewrite inE ?ox ?sy orbT.
by apply: pos; rewrite inE sy orbT.
Qed.

Lemma exchange_bound (S O : seq nat) (c f : nat -> Z) :
  uniq S -> uniq O -> size O <= size S -> (forall s, (0 <= f s)%Z) ->
  (forall o s : nat, o \in O -> o \notin S -> s \in S -> (c o <= f s)%Z) ->
  (\Sum_(o <- O) f o <= \Sum_(s <- S) f s + \Sum_(o <- O | o \notin S) (f o - c o))%Z.
Proof.
move=> uS uO sz pos cf.
rewrite (bigID (mem S)) /= [\Sum_(s <- S) f s](bigID (mem O)) /= sum_sub.
have both : perm_eq [seq o <- O | o \in S] [seq s <- S | s \in O].
  by apply: uniq_perm; rewrite ?filter_uniq // => x; rewrite !mem_filter andbC.
have -> : \Sum_(o <- O | o \in S) f o = \Sum_(s <- S | s \in O) f s.
  by rewrite -big_filter -[RHS]big_filter; apply: perm_big.
suff : (\Sum_(o <- O | o \notin S) c o <= \Sum_(s <- S | s \notin O) f s)%Z by sums.
rewrite -big_filter -[X in (_ <= X)%Z]big_filter; apply: pair_sum => [|o s|s _] //.
  have := perm_size both; rewrite !size_filter => e.
  rewrite -(leq_add2l (count (mem S) O)) (count_predC (mem S) O) e.
  by rewrite (count_predC (mem O) S).
by rewrite !mem_filter => /andP[oS oO] /andP[_ sS]; apply: cf.
Qed.

Definition from_prompt_end (p : nat) : pred nat := fun t => p <= t.+1.

(* A cache that evicts by any score, of equals the oldest first, from the end of the prompt on. *)
Section Scored.

Variables (b : nat -> nat -> Z) (p : nat).

Notation low := (fun t => by_score (b t)).
Notation from_prompt_end := (from_prompt_end p).

Definition scored (k t : nat) : seq nat := store low from_prompt_end k t.

Lemma size_scored k t : size (scored k t) = if p <= t then minn k t else t.
Proof.
elim: t => [|t IH]; first by rewrite minn0 if_same.
rewrite /scored storeS /from_prompt_end; case: (leqP p t.+1) => pt; last first.
  by rewrite size_rcons IH leqNgt (ltnW pt).
rewrite size_trim size_rcons IH; case: (p <= t) => //.
case: (leqP k t) => kt; first by rewrite !(minn_idPl _) // (leqW kt).
by rewrite (minn_idPr kt).
Qed.

Hypothesis grows : forall i j s, i <= j -> (b i s <= b j s)%Z.

Lemma least_grows t k i (s : nat) c : from_prompt_end t -> k <= t <= i ->
  (forall u : nat, u \in scored k t.+1 -> (c <= b t u)%Z) ->
  s \in scored k i.+1 -> (c <= b i s)%Z.
Proof.
move=> ev /andP[kt]; elim: i s => [|i IH] s ti base; first by move: ti base; rewrite leqn0 => /eqP->; apply.
move: ti; rewrite leq_eqVlt => /orP[/eqP<-|]; first exact: base.
rewrite ltnS => ti sin; have {}IH (u : nat) : u \in scored k i.+1 -> (c <= b i u)%Z by move=> h; apply: IH.
have := mem_subseq (store_subseq_attended low from_prompt_end k i.+1) sin.
rewrite mem_rcons inE => /orP[/eqP sn|old]; last first.
  by have := IH _ old; have := @grows i i.+1 s (leqnSn i); lia.
(* the new token stays: some old one was evicted instead, and ranks below it *)
have size_k j : t <= j -> size (scored k j.+1) = k.
  move=> tj; rewrite size_scored (leq_trans ev) //.
  by apply/minn_idPl; rewrite (leq_trans kt) // (leq_trans tj).
have /allPn[u uin uout] : ~~ all (mem (scored k i.+2)) (scored k i.+1).
  apply/negP => /allP sub; have : size (i.+1 :: scored k i.+1) <= size (scored k i.+2).
    apply: uniq_leq_size => [|x]; first by rewrite cons_uniq /scored store_uniq andbT; apply/negP => /store_lt; rewrite ltnn.
    by rewrite inE => /orP[/eqP->|/sub h]; [move: sin; rewrite sn|exact: h].
  by rewrite /= !size_k ?ltnn // (leq_trans ti).
have ev' : from_prompt_end i.+1 by apply: leq_trans ev _; rewrite !ltnS (leq_trans ti).
have us : low i.+1 u s.
  move: sin uout; rewrite /scored storeS ev' => sin uout.
  apply: (trim_out_low (by_score_order _)) uout sin; first exact: attended_uniq.
  by rewrite mem_rcons inE uin orbT.
have := by_score_le us; have := IH _ uin; have := @grows i i.+1 u (leqnSn i).
by lia.
Qed.

Lemma gone_scored_below k i (o s : nat) : o <= i -> o \notin scored k i.+1 -> s \in scored k i.+1 ->
  (b (departure low from_prompt_end k i.+1 o) o <= b i s)%Z.
Proof.
move=> oi out; have [] := departure_spec (oi : o < i.+1) out.
move: (departure low from_prompt_end k i.+1 o) => t /andP[_ ti] ot out_t.
have ev : from_prompt_end t.
  by apply: contraNT out_t => /negbTE nev; rewrite storeS nev.
have kt : k <= t.
  rewrite leqNgt; apply: contra out_t => tk; rewrite storeS ev trim_small //.
  rewrite size_rcons -/(scored k t) size_scored; case: ifP => _ //.
  by apply: leq_ltn_trans (geq_minr _ _) tk.
apply: (least_grows ev); first by rewrite kt.
move=> u; move: out_t; rewrite /scored storeS ev => out_t uin.
apply: by_score_le; apply: (trim_out_low (by_score_order (b t))) out_t uin => //.
exact: attended_uniq.
Qed.

End Scored.

Section SettingP.

Variables (A : nat -> nat -> Z) (p : nat).

Definition score (i s : nat) : Z := \Sum_(s <= t < i.+1) A t s.

Definition below (i : nat) : rel nat := by_score (score i).

Definition before (k t : nat) : seq nat := store below (from_prompt_end p) k t.
Definition cache (k i : nat) : seq nat := before k i.+1.
Definition top (k i : nat) : seq nat := trim (below i) k (iota 0 i.+1).

(* f_i of the prose. *)
Definition mass (i : nat) (S : seq nat) : Z := \Sum_(s <- S) score i s.

(* t_o of the prose: the step at which a token that cache k i misses was evicted. *)
Definition gone (k i o : nat) : nat := departure below (from_prompt_end p) k i.+1 o.

Lemma below_order i : strict_order (below i).
Proof. exact: by_score_order. Qed.

Lemma cache_uniq k i : uniq (cache k i).
Proof. exact: store_uniq. Qed.

Lemma size_before k t : size (before k t) = if p <= t then minn k t else t.
Proof. exact: size_scored. Qed.

(* i_0 of the prose: the first step after which the cache of budget k is full. *)
Definition full_from (k : nat) : nat := (maxn p k).-1.

Lemma cache_start k : 0 < p -> cache k (full_from k) =i top k (full_from k).
Proof.
move=> prompt.
rewrite /cache /top /full_from prednK; last by rewrite leq_max prompt.
have all t : t < p \/ t <= k -> before k t = iota 0 t.
  case=> [tp|tk]; apply: store_all => s st; last by rewrite (leq_trans st).
  by rewrite /from_prompt_end leqNgt (leq_ltn_trans st).
have [pk|kp] := leqP p k; first by rewrite all ?trim_small ?size_iota //; right.
move=> x; rewrite /before -(prednK prompt) storeS /from_prompt_end prednK // leqnn.
rewrite /attended -/(before k p.-1) all; last by left; rewrite prednK.
by rewrite -cats1 -[[:: p.-1]]/(iota (0 + p.-1) 1) -iotaD addn1 prednK.
Qed.

Hypothesis pos : forall t s, (0 <= A t s)%Z.

Lemma score_ge0 i s : (0 <= score i s)%Z.
Proof. by apply: sum_ge0. Qed.

Lemma score_grows i j s : i <= j -> (score i s <= score j s)%Z.
Proof.
move=> ij; rewrite /score; have [si|is_] := leqP s i.+1.
  rewrite [X in (_ <= X)%Z](@big_cat_nat _ _ _ i.+1) //=.
  have : (0 <= \Sum_(i.+1 <= t < j.+1) A t s)%Z by apply: sum_ge0.
  by lia.
by rewrite big_geq 1?ltnW //; apply: sum_ge0.
Qed.

(* A token that went is worth no more, when it went, than whatever is cached later. *)
(* A token that went is worth no more, when it went, than whatever is cached later. *)
Lemma gone_below k i (o s : nat) : o <= i -> o \notin cache k i -> s \in cache k i ->
  (score (gone k i o) o <= score i s)%Z.
Proof. by apply: (@gone_scored_below score p); apply: score_grows. Qed.

End SettingP.
