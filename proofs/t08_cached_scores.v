(* T3, the twin of 08-cached-scores.md: with cached scores, at most the missed mass more is lost.

   Modelled: a unit of H heads, [A h t j] the integer score of head h; a run that sees cached scores,
   step by step ([state]): it attends its cache and the new token, adds to the score of each attended token what
   it is shown of it, and evicts the lowest, of equals the oldest, until k are left. A decode row
   of a head is shown divided by its recall, A w / g, w the mass of the row and g the attended mass, nothing
   if g is 0; a prompt row is shown as it is.

   Quotients: scores are counted in units of 1/D. [exact] says that D is a multiple of every attended
   mass of the run, so that each quotient is a whole number of units and nothing is rounded. Such a D
   always exists, the factorial of the largest row mass for one; decisions do not depend on it.

   Proved ([cached_scores]): for every step i and any list O of at most k different tokens 0 ... i, with
   everything counted in units of 1/D, f_i(O) is at most f_i(S_i), and what the members of O that S_i
   misses received after their eviction, and the missed mass M_i. f_i is of full scores. *)

From Coq Require Import ZArith Lia.
From mathcomp Require Import all_ssreflect.
From H2O Require Import Common Sums SettingP.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section CachedScores.

Variables (H : nat) (A : nat -> nat -> nat -> Z) (p k : nat) (D : Z).

(* The mass of row t of head h, and the part of it that is attended. *)
Definition whole (h t : nat) : Z := \Sum_(0 <= j < t.+1) A h t j.
Definition found (h t : nat) (G : seq nat) : Z := \Sum_(j <- G) A h t j.

(* What the run is shown of token s, in units of 1/D. *)
Definition shown_by (h t : nat) (G : seq nat) (s : nat) : Z :=
  if p <= t then (D * A h t s * whole h t / found h t G)%Z else (D * A h t s)%Z.
Definition shown (t : nat) (G : seq nat) (s : nat) : Z := \Sum_(0 <= h < H) shown_by h t G s.

(* The cache before step t, and the scores that its tokens have by then. *)
Fixpoint state (t : nat) : seq nat * (nat -> Z) :=
  if t is t'.+1 then
    let G := rcons (state t').1 t' in
    let b := fun s => if s \in G then ((state t').2 s + shown t' G s)%Z else (state t').2 s in
    (if from_prompt_end p t' then trim (by_score b) k G else G, b)
  else ([::], fun=> 0%Z).

Definition seen (t : nat) : seq nat := rcons (state t).1 t.    (* G_t *)
Definition held (i : nat) : seq nat := (state i.+1).1.          (* S_i *)
Definition b (i : nat) : nat -> Z := (state i.+1).2.            (* b_i *)
Definition gone (i o : nat) : nat :=
  departure (fun t => by_score (b t)) (from_prompt_end p) k i.+1 o.

(* Full scores of the unit: f_i is their sum. *)
Definition full (t s : nat) : Z := \Sum_(0 <= h < H) A h t s.
Notation score := (score full).
Notation mass := (mass full).

(* M_i *)
Definition missed (i : nat) : Z :=
  \Sum_(p <= t < i.+1) \Sum_(0 <= h < H) (whole h t - found h t (seen t)).

Hypothesis pos : forall h t s, (0 <= A h t s)%Z.
Hypothesis D_pos : (0 < D)%Z.
Hypothesis exact : forall h t, h < H -> p <= t ->
  found h t (seen t) <> 0%Z -> (found h t (seen t) | D)%Z.

Lemma run_is_scored t : (state t).1 = scored b p k t.
Proof. by elim: t => // t IH; rewrite /scored storeS /attended -/(scored b p k t) -IH. Qed.

Lemma seen_uniq t : uniq (seen t).
Proof. by rewrite /seen run_is_scored; apply: attended_uniq. Qed.

Lemma seen_le t s : s \in seen t -> s <= t.
Proof. by rewrite mem_rcons inE run_is_scored => /orP[/eqP->//|/store_lt/ltnW]. Qed.

Lemma held_seen i : {subset held i <= seen i}.
Proof.
move=> s; rewrite /held /seen run_is_scored.
by move/(mem_subseq (store_subseq_attended _ _ _ _)); rewrite run_is_scored.
Qed.

Lemma found_ge0 h t G : (0 <= found h t G)%Z.
Proof. by apply: sum_ge0. Qed.

Lemma whole_ge0 h t : (0 <= whole h t)%Z.
Proof. by apply: sum_ge0. Qed.

Lemma found_le_whole h t : (found h t (seen t) <= whole h t)%Z.
Proof.
rewrite /whole (@sum_sub_seq _ (seen t)) ?seen_uniq ?iota_uniq //.
  have : (0 <= \Sum_(j <- index_iota 0 t.+1 | j \notin seen t) A h t j)%Z by apply: sum_ge0.
  by rewrite /found; sums.
by move=> j /seen_le; rewrite mem_index_iota ltnS.
Qed.

Lemma entry_le_found h t s : s \in seen t -> (A h t s <= found h t (seen t))%Z.
Proof.
move=> st; rewrite /found (bigD1_seq s) ?seen_uniq //=.
have : (0 <= \Sum_(j <- seen t | j != s) A h t j)%Z by apply: sum_ge0.
by sums.
Qed.

(* One head, one decode row: what renormalising adds. *)
Lemma shown_exact h t s : h < H -> p <= t -> s \in seen t ->
  (shown_by h t (seen t) s * found h t (seen t) = D * A h t s * whole h t)%Z.
Proof.
move=> hH pt st; rewrite /shown_by pt; have le := @entry_le_found h t s st; have ge := @pos h t s.
case: (Z.eq_dec (found h t (seen t)) 0) => [z|nz].
  have -> : A h t s = 0%Z by lia.
  by rewrite z !Z.mul_0_r Z.mul_0_l.
have [q ->] := exact hH pt nz; set g := found h t (seen t) in nz *.
have -> : (q * g * A h t s * whole h t = q * A h t s * whole h t * g)%Z by ring.
by rewrite Z.div_mul.
Qed.

Lemma shown_more h t s : h < H -> s \in seen t ->
  (D * A h t s <= shown_by h t (seen t) s)%Z.
Proof.
move=> hH st; rewrite /shown_by; case: ifP => pt; last by lia.
have eq := shown_exact hH pt st; rewrite /shown_by pt in eq.
have le := @entry_le_found h t s st; have ge := @pos h t s; have fw := @found_le_whole h t.
case: (Z.eq_dec (found h t (seen t)) 0) => [z|nz].
  have -> : A h t s = 0%Z by lia.
  by rewrite z Zdiv_0_r; lia.
have fp : (0 < found h t (seen t))%Z by have := @found_ge0 h t (seen t); lia.
by apply/(Z.mul_le_mono_pos_r _ _ _ fp); rewrite eq; nia.
Qed.

Lemma shown_sum h t : h < H -> p <= t ->
  (\Sum_(s <- seen t) (shown_by h t (seen t) s - D * A h t s)
    <= D * (whole h t - found h t (seen t)))%Z.
Proof.
move=> hH pt; rewrite sum_sub sum_mul -/(found h t (seen t)).
set g := found h t (seen t).
suff : (\Sum_(s <- seen t) shown_by h t (seen t) s <= D * whole h t)%Z by sums.
have wp := @whole_ge0 h t.
case: (Z.eq_dec g 0) => [z|nz].
  rewrite big1 => [|s _]; first by nia.
  by rewrite /shown_by pt -/g z Zdiv_0_r.
have gp : (0 < g)%Z by have := @found_ge0 h t (seen t); rewrite -/g; lia.
apply/(Z.mul_le_mono_pos_l _ _ _ gp); rewrite -sum_mul big_seq.
rewrite (eq_bigr (fun s => D * whole h t * A h t s)%Z) => [|s st]; last first.
  by rewrite Z.mul_comm shown_exact //; ring.
rewrite -big_seq sum_mul -/(found h t (seen t)) -/g; lia.
Qed.

(* Scores, full scores and missed mass before step t. *)
Let pb t s : Z := (state t).2 s.
Let pa t s : Z := \Sum_(s <= u < t) full u s.
Let pm t : Z := \Sum_(p <= u < t) \Sum_(0 <= h < H) (whole h u - found h u (seen u)).

Lemma young t s : t <= s -> pb t s = 0%Z.
Proof.
elim: t => [//|t IH] ts; rewrite /pb /= -/(seen t); case: ifP => [/seen_le|_].
  by rewrite leqNgt ts.
by apply: IH; apply: ltnW.
Qed.

Lemma pb_next t s : s \in seen t -> pb t.+1 s = (pb t s + shown t (seen t) s)%Z.
Proof. by rewrite /pb /= -/(seen t) => ->. Qed.

Lemma pa_next t s : s <= t -> pa t.+1 s = (pa t s + full t s)%Z.
Proof. by move=> st; rewrite /pa big_nat_recr. Qed.

Lemma shown_full t s : s \in seen t -> (D * full t s <= shown t (seen t) s)%Z.
Proof.
move=> st; rewrite /full /shown -sum_mul; apply: sum_le => h.
by rewrite mem_index_iota => /andP[_ hH] _; apply: shown_more.
Qed.

Lemma shown_growth t :
  (\Sum_(s <- seen t) (shown t (seen t) s - D * full t s) <= D * (pm t.+1 - pm t))%Z.
Proof.
have -> : \Sum_(s <- seen t) (shown t (seen t) s - D * full t s) =
    \Sum_(0 <= h < H) \Sum_(s <- seen t) (shown_by h t (seen t) s - D * A h t s).
  rewrite exchange_big /=; apply: eq_bigr => s _.
  by rewrite sum_sub sum_mul.
have [pt|tp] := leqP p t.
  have -> : (pm t.+1 - pm t = \Sum_(0 <= h < H) (whole h t - found h t (seen t)))%Z.
    by rewrite /pm big_nat_recr //=; sums.
  rewrite -sum_mul; apply: sum_le => h.
  by rewrite mem_index_iota => /andP[_ hH] _; apply: shown_sum.
have -> : (pm t.+1 - pm t = 0)%Z by rewrite /pm !big_geq // ltnW.
rewrite Z.mul_0_r big1 => [|h _]; first by lia.
by rewrite big1 // => s _; rewrite /shown_by leqNgt tp /=; lia.
Qed.

Lemma raised t :
  (forall s, s \in (state t).1 -> (D * pa t s <= pb t s)%Z) /\
  (\Sum_(s <- (state t).1) (pb t s - D * pa t s) <= D * pm t)%Z ->
  (forall s, s \in seen t -> (D * pa t.+1 s <= pb t.+1 s)%Z) /\
  (\Sum_(s <- seen t) (pb t.+1 s - D * pa t.+1 s) <= D * pm t.+1)%Z.
Proof.
move=> [each all].
have new : pb t t = 0%Z /\ pa t t = 0%Z by rewrite young // /pa big_geq.
have each' s : s \in seen t -> (D * pa t s <= pb t s)%Z.
  by rewrite mem_rcons inE => /orP[/eqP->|/each//]; rewrite new.1 new.2; lia.
split=> [s st|].
  have := each' s st; have := shown_full st.
  by rewrite pb_next // pa_next ?seen_le //; lia.
have -> : \Sum_(s <- seen t) (pb t.+1 s - D * pa t.+1 s) =
   (\Sum_(s <- seen t) (pb t s - D * pa t s) + \Sum_(s <- seen t) (shown t (seen t) s - D * full t s))%Z.
  rewrite -sum_add big_seq [RHS]big_seq; apply: eq_bigr => s st.
  by rewrite pb_next // pa_next ?seen_le //; lia.
have grown := @shown_growth t.
have -> : \Sum_(s <- seen t) (pb t s - D * pa t s) = \Sum_(s <- (state t).1) (pb t s - D * pa t s).
  by rewrite /seen -cats1 big_cat big_seq1 /= new.1 new.2; sums.
by move: all grown; sums.
Qed.

Lemma raise_bound t :
  (forall s, s \in (state t).1 -> (D * pa t s <= pb t s)%Z) /\
  (\Sum_(s <- (state t).1) (pb t s - D * pa t s) <= D * pm t)%Z.
Proof.
elim: t => [|t /raised[each all]].
  by split=> //; rewrite big_nil /pm big_geq //; lia.
split=> [s /held_seen/each//|].
apply: Z.le_trans all.
have us : uniq (held t) by rewrite /held run_is_scored; apply: store_uniq.
rewrite [X in (_ <= X)%Z](sum_sub_seq _ us (seen_uniq t)); last exact: held_seen.
have : (0 <= \Sum_(s <- seen t | s \notin held t) (pb t.+1 s - D * pa t.+1 s))%Z.
  by apply: sum_ge0 => s /each h _; lia.
by rewrite -/(held t); sums.
Qed.

Lemma pb_grows t s : (pb t s <= pb t.+1 s)%Z.
Proof.
case st: (s \in seen t); last by rewrite [X in (_ <= X)%Z]/pb /= -/(seen t) st; apply: Z.le_refl.
have full_pos : (0 <= full t s)%Z by apply: sum_ge0.
have more := shown_full st; rewrite pb_next //.
have : (0 <= D * full t s)%Z by apply: Z.mul_nonneg_nonneg => //; apply: Z.lt_le_incl.
by move: more; move: (shown _ _ _) (full _ _) (pb _ _); lia.
Qed.

Lemma b_grows i j s : i <= j -> (b i s <= b j s)%Z.
Proof.
move=> ij; rewrite -(subnK ij); elim: (j - i) => [|d IH]; first exact: Z.le_refl.
by apply: Z.le_trans IH _; exact: pb_grows.
Qed.

Lemma b_ge0 i s : (0 <= b i s)%Z.
Proof.
have start : (0 <= pb 1 s)%Z by exact: (@pb_grows 0 s).
exact: Z.le_trans start (@b_grows 0 i s (leq0n i)).
Qed.

Theorem cached_scores i (O : seq nat) :
  uniq O -> (forall o, o \in O -> o <= i) -> size O <= k ->
  (D * mass i O <= D * mass i (held i)
     + D * (\Sum_(o <- O | o \notin held i) (score i o - score (gone i o) o)) + D * missed i)%Z.
Proof.
move=> uO oi Ok; pose S := held i.
have uS : uniq S by rewrite /S /held run_is_scored; apply: store_uniq.
have [each total_raised] := raise_bound i.+1.
have score_pos s : (0 <= score i s)%Z by apply: score_ge0 => *; apply: sum_ge0.
have b_pos s : (0 <= b i s)%Z by apply: b_ge0.
(* what counts: the run's own score of what it holds, the full score of what it misses *)
pose f (s : nat) := if s \in S then b i s else (D * score i s)%Z.
have key : (\Sum_(o <- O) f o <= \Sum_(s <- S) f s + \Sum_(o <- O | o \notin S) (f o - b (gone i o) o))%Z.
  have [full_|/allPn[o' oO' out']] := boolP (all (mem S) O).
    rewrite [X in (_ <= _ + X)%Z]big1_seq ?Z.add_0_r.
      rewrite (sum_sub_seq f uO uS (allP full_)).
      have : (0 <= \Sum_(s <- S | s \notin O) f s)%Z.
        by apply: sum_ge0 => s sS _; rewrite /f sS.
      by sums.
    by move=> o /andP[out /(allP full_)]; rewrite /= (negbTE out).
  apply: exchange_bound => // [|s|o s oO out sS].
  - have := out'; rewrite /= /S /held run_is_scored size_scored => out.
    case: ifP => pi.
      have [//|ki] := leqP k i.+1; move: out.
      rewrite /scored store_all ?mem_iota ?ltnS ?oi // => s si _.
      by apply: leq_trans ki; rewrite ltnW.
    move: out; rewrite /scored store_all ?mem_iota ?ltnS ?oi // => s si.
    by rewrite /from_prompt_end leqNgt (leq_ltn_trans si) // ltnNge pi.
  - by rewrite /f; case: ifP => _ //; have := score_pos s; nia.
  rewrite /f sS; move: out sS; rewrite /S /held run_is_scored => out sS.
  by apply: (@gone_scored_below b p) => //; [exact: b_grows|exact: oi].
have goneOK o : o \in O -> o \notin S -> (D * score (gone i o) o <= b (gone i o) o)%Z.
  move=> oO; rewrite /S /held run_is_scored => out.
  have [] := departure_spec (oi o oO : o < i.+1) out; rewrite -/(gone i o) => _ og _.
  have [h _] := raised (raise_bound (gone i o)); apply: h.
  by rewrite /seen run_is_scored.
have held_sum : \Sum_(s <- S) f s = (D * mass i S + \Sum_(s <- S) (b i s - D * score i s))%Z.
  rewrite /mass -sum_mul -sum_add big_seq [RHS]big_seq; apply: eq_bigr => s sS.
  by rewrite /f sS; lia.
have O_sum : (D * mass i O <= \Sum_(o <- O) f o)%Z.
  rewrite /mass -sum_mul; apply: sum_le => o _ _; rewrite /f; case: ifP => oS; last by lia.
  exact: each.
have lost : (\Sum_(o <- O | o \notin S) (f o - b (gone i o) o) <=
    D * \Sum_(o <- O | o \notin S) (score i o - score (gone i o) o))%Z.
  rewrite -sum_mul; apply: sum_le => o oO out; rewrite /f (negbTE out).
  by have := goneOK o oO out; lia.
have all' : (\Sum_(s <- S) (b i s - D * score i s) <= D * missed i)%Z by exact: total_raised.
rewrite -/S; move: key held_sum O_sum lost all'; sums.
Qed.

End CachedScores.

Print Assumptions cached_scores.
