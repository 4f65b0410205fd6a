"use strict";
(() => {
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const STEP = 5; // seconds that an arrow key moves
  const LOOK = 200; // milliseconds between two checks of how far the stems are apart
  const APART = 0.015; // seconds apart that nobody hears
  const LOST = 0.12; // seconds apart that are faster sought than caught up
  const BEND = 0.015; // change of speed by which a sound catches up unnoticed
  const BEND_UNHEARD = 0.1; // and one that is muted
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200]; // seconds
  const TICK = 72; // pixels that a label of the time axis takes
  const SHOWN = 2000; // milliseconds that a button says what it did
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const tracks = [...document.querySelectorAll(".track")];
  const players = new WeakMap();
  let active = null; // the one player that has audio elements

  const clock = (seconds) => {
    const whole = Math.floor(seconds + 1e-6);
    const pad = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(whole / 3600);
    const minutes = Math.floor((whole % 3600) / 60);
    return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
  };
  const say = (text) => { document.getElementById("status").textContent = text; };
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const only = (row, kind) => row.querySelector(`.${kind}`);

  /** One track's sounds, which start, stop and move together. */
  class Player {
    constructor(track) {
      this.track = track;
      this.title = track.querySelector("h2").textContent;
      this.button = track.querySelector(".play");
      this.slider = track.querySelector(".seek");
      this.now = track.querySelector(".time b");
      this.rows = [...track.querySelectorAll(".sound[data-src]")];
      this.seconds = Number(track.dataset.seconds);
      this.at = 0; // seconds; while it plays the leading voice knows better
      this.voices = [];
      this.playing = false;
      this.held = false; // by a pointer, which shows another place than the one that sounds
      this.turn = 0; // counts starts and stops: what an earlier one waited for is void
    }

    /** The voice that the others keep to: the longest, and of those one that is heard. */
    get leader() {
      const weight = (audio) => audio ? audio.duration + (audio.muted ? 0 : 0.2) : 0;
      return this.voices.reduce((a, b) => (weight(b) > weight(a) ? b : a), null);
    }

    get position() {
      return this.playing && !this.busy ? this.leader?.currentTime ?? this.at : this.at;
    }

    /** Make the audio elements, and take those of the track that had them. */
    open() {
      if (active === this) return;
      active?.close();
      active = this;
      this.track.classList.add("active");
      this.voices = this.rows.map((row) => this.voice(row));
      this.mix();
    }

    voice(row) {
      const audio = document.createElement("audio");
      audio.preload = "auto";
      audio.preservesPitch = false; // catching up bends it by less than anyone hears
      audio.addEventListener("ended", () => { if (this.leader?.ended) this.finish(); });
      audio.addEventListener("error", () => this.lose(audio, row));
      audio.src = row.dataset.src;
      row.append(audio);
      return audio;
    }

    lose(audio, row) {
      if (!this.voices.includes(audio)) return;
      this.voices = this.voices.filter((each) => each !== audio);
      this.rows = this.rows.filter((each) => each !== row);
      only(row, "choice").textContent = "Cannot be played";
      this.mix();
      say(`${row.dataset.name} cannot be played`);
      if (!this.voices.length) this.pause();
    }

    close() {
      this.pause();
      this.track.classList.remove("active");
      const voices = this.voices;
      this.voices = [];
      for (const audio of voices) {
        audio.removeAttribute("src");
        audio.load();
        audio.remove();
      }
      this.at = 0;
      this.paint();
      active = null;
    }

    toggle() {
      if (this.playing) {
        this.pause();
        say(`Paused at ${clock(this.at)}`);
      } else {
        this.open();
        this.start();
        say(`Playing ${this.title}`);
      }
    }

    /** Let all voices begin at the same place at the same moment, once all of them can. */
    async start() {
      const turn = ++this.turn;
      this.show({ playing: true, busy: true });
      const at = this.at;
      for (const audio of this.voices) {
        audio.pause();
        audio.playbackRate = 1;
      }
      await Promise.all(this.voices.map((audio) => this.isAt(audio, at)));
      if (turn !== this.turn) return;
      const able = this.voices.filter((audio) => audio.duration > at);
      try {
        await Promise.all(able.map((audio) => audio.play()));
      } catch {
        if (turn === this.turn) this.pause();
        return;
      }
      if (turn !== this.turn) return;
      this.show({ playing: true, busy: false });
      this.follow(turn);
    }

    /** Resolve once an element can play from a place on, or never will. */
    isAt(audio, at) {
      return new Promise((resolve) => {
        const names = ["loadedmetadata", "seeked", "canplay", "error", "emptied"];
        let sought = false;
        const look = (event) => {
          const known = audio.readyState >= audio.HAVE_METADATA;
          if (known && !sought) {
            sought = true;
            if (Math.abs(audio.currentTime - at) > 0.001) audio.currentTime = at;
          }
          const can = audio.readyState >= audio.HAVE_FUTURE_DATA || at >= audio.duration - 0.1;
          if (event?.type === "emptied" || audio.error || (known && !audio.seeking && can)) {
            names.forEach((name) => audio.removeEventListener(name, look));
            resolve();
          }
        };
        names.forEach((name) => audio.addEventListener(name, look));
        look();
      });
    }

    pause() {
      const at = this.position;
      ++this.turn;
      this.at = Math.min(at, this.seconds);
      this.voices.forEach((audio) => audio.pause());
      this.show({ playing: false, busy: false });
      this.paint();
    }

    finish() {
      this.pause();
      this.at = 0;
      this.paint();
      say("At the end");
    }

    seek(at) {
      this.at = Math.max(0, Math.min(at, this.seconds));
      this.held = false;
      this.paint(this.at);
      if (this.playing) {
        if (this.at >= this.seconds) this.finish();
        else this.start();
      }
    }

    /** Move the playhead and keep the voices together for as long as this start lasts. */
    follow(turn) {
      const align = setInterval(() => {
        if (turn !== this.turn) clearInterval(align);
        else this.align();
      }, LOOK);
      const draw = () => {
        if (turn !== this.turn) return;
        if (!this.held) this.paint();
        if (calm.matches) setTimeout(draw, 500);
        else requestAnimationFrame(draw);
      };
      draw();
    }

    align() {
      const leader = this.leader;
      for (const audio of this.voices) {
        if (audio === leader) {
          if (audio.playbackRate !== 1) audio.playbackRate = 1;
          continue;
        }
        if (audio.ended || audio.paused || audio.seeking) continue;
        const ahead = audio.currentTime - leader.currentTime;
        if (Math.abs(ahead) > LOST) audio.currentTime = leader.currentTime;
        const most = audio.muted ? BEND_UNHEARD : BEND;
        const bend = Math.max(-most, Math.min(most, ahead));
        const rate = Math.abs(ahead) > APART ? 1 - bend : 1;
        if (audio.playbackRate !== rate) audio.playbackRate = rate;
      }
    }

    /** Make audible what is soloed, or else all that is not muted. */
    mix() {
      const solos = this.rows.some((row) => isPressed(only(row, "solo")));
      for (const row of this.rows) {
        const heard = solos ? isPressed(only(row, "solo")) : !isPressed(only(row, "mute"));
        row.classList.toggle("silent", !heard);
        const audio = row.querySelector("audio");
        if (audio) audio.muted = !heard;
      }
    }

    switch(row, kind) {
      const button = only(row, kind);
      press(button, !isPressed(button));
      this.mix();
      say(`${row.dataset.name}: ${kind} ${isPressed(button) ? "on" : "off"}`);
    }

    /** Put a link to this place in the track into the address bar and the clipboard. */
    async share(button) {
      const url = `${location.href.split("#")[0]}#${this.track.id}@${Math.floor(this.position)}`;
      let told = "Link copied";
      try { history.replaceState(null, "", url); } catch { /* not for every kind of page */ }
      try {
        await navigator.clipboard.writeText(url);
      } catch {
        told = "In address bar";
      }
      const text = button.dataset.text ??= button.textContent;
      button.textContent = told;
      say(told);
      setTimeout(() => { button.textContent = text; }, SHOWN);
    }

    show({ playing, busy }) {
      this.playing = playing;
      this.busy = busy;
      this.button.classList.toggle("playing", playing);
      this.button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${this.title}`);
      this.button.setAttribute("aria-busy", String(busy));
      if ("mediaSession" in navigator && active === this) {
        navigator.mediaSession.playbackState = playing ? "playing" : "paused";
        navigator.mediaSession.metadata = new MediaMetadata({ title: this.title });
      }
    }

    paint(at = this.position) {
      const share = this.seconds ? Math.min(1, at / this.seconds) : 0;
      this.track.style.setProperty("--at", share.toFixed(5));
      this.slider.value = at;
      const text = clock(Math.min(at, this.seconds));
      if (this.now.textContent !== text) {
        this.now.textContent = text;
        this.slider.setAttribute("aria-valuetext", `${text} of ${clock(this.seconds)}`);
      }
    }
  }

  const playerOf = (track) => {
    if (!track?.querySelector(".play")) return null;
    if (!players.has(track)) players.set(track, new Player(track));
    return players.get(track);
  };

  /** The player that keys are for: where the focus is, or what plays, or what is in view. */
  const current = (target) =>
    playerOf(target.closest?.(".track")) || active || playerOf(tracks.find((track) =>
      !track.hidden && track.querySelector(".play") && track.getBoundingClientRect().bottom > 80));

  const outline = (heights) => {
    const edge = (sign) => heights.map((height, x) => `${x},${64 + sign * Math.max(0.4, height)}`);
    const last = heights.length;
    return `M0,64L${edge(-1).join("L")}L${last},64L${edge(1).reverse().join("L")}Z`;
  };

  /** Label a track's time axis at round times. */
  const drawAxis = (track) => {
    const axis = track.querySelector(".axis:empty");
    const seconds = Number(track.dataset.seconds);
    if (!axis || !seconds) return;
    const width = axis.clientWidth;
    const most = Math.max(1, Math.floor(width / TICK));
    const step = STEPS.find((each) => seconds / each <= most) ?? STEPS.at(-1);
    for (let at = 0; at < seconds && (seconds - at) / seconds * width > TICK / 2; at += step) {
      const tick = document.createElement("span");
      tick.textContent = clock(at);
      tick.style.left = `${100 * at / seconds}%`;
      axis.append(tick);
    }
  };

  /** Draw a track's waveforms: the loudest samples, and over them the level. */
  const drawTrack = (track) => {
    drawAxis(track);
    for (const wave of track.querySelectorAll(".wave[data-wave]")) {
      const heights = [...wave.dataset.wave].map((digit) => DIGITS.indexOf(digit));
      const parts = heights.length / 2;
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", `0 0 ${parts} 128`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      for (const shape of [heights.slice(0, parts), heights.slice(parts)]) {
        const path = document.createElementNS(svg.namespaceURI, "path");
        path.setAttribute("d", outline(shape));
        svg.append(path);
      }
      wave.append(svg);
      wave.removeAttribute("data-wave");
    }
  };

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      drawTrack(entry.target);
    }
  }, { rootMargin: "800px" });

  const listenToTracks = () => {
    const main = document.querySelector("main");
    main.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      const player = button && playerOf(button.closest(".track"));
      if (!player) return;
      if (button === player.button) player.toggle();
      else if (button.className === "share") player.share(button);
      else player.switch(button.closest(".sound"), button.className);
    });
    main.addEventListener("input", (event) => {
      const player = playerOf(event.target.closest(".track"));
      player.held = true;
      player.paint(Number(event.target.value));
    });
    main.addEventListener("change", (event) => {
      playerOf(event.target.closest(".track")).seek(Number(event.target.value));
    });
    const place = (wave, event) => {
      const box = wave.getBoundingClientRect();
      return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    };
    const drag = (event, then) => {
      const wave = event.target.closest(".wave:not(.unseeable)");
      const player = playerOf(wave?.closest(".track"));
      if (player) then(player, wave);
    };
    main.addEventListener("pointerdown", (event) => drag(event, (player, wave) => {
      if (event.button) return;
      wave.setPointerCapture(event.pointerId);
      player.held = true;
      player.paint(place(wave, event) * player.seconds);
    }));
    main.addEventListener("pointermove", (event) => drag(event, (player, wave) => {
      if (player.held) player.paint(place(wave, event) * player.seconds);
    }));
    main.addEventListener("pointerup", (event) => drag(event, (player, wave) => {
      if (!player.held) return;
      player.seek(place(wave, event) * player.seconds);
    }));
    main.addEventListener("pointercancel", (event) => drag(event, (player) => {
      player.held = false;
      player.paint();
    }));
  };

  const goTo = (from, step) => {
    const shown = tracks.filter((track) => !track.hidden);
    const here = shown.indexOf(from);
    const next = shown[here < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, here + step))];
    next?.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
    (next?.querySelector(".play") ?? next)?.focus({ preventScroll: true });
  };

  const listenToKeys = () => document.addEventListener("keydown", (event) => {
    const { target } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (target.matches?.("[type=search], [type=radio]")) return;
    const player = current(target);
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1];
    if (event.key === "/") {
      document.querySelector("[type=search]")?.focus();
    } else if (event.key === "n" || event.key === "p") {
      goTo(target.closest?.(".track") ?? active?.track, event.key === "n" ? 1 : -1);
    } else if (!player) {
      return;
    } else if (event.key === " " && !target.closest?.("button, a, summary")) {
      player.toggle();
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      player.seek(player.position + (event.key === "ArrowLeft" ? -STEP : STEP));
    } else if (event.key === "Home" && target.closest?.(".track")) {
      player.seek(0);
    } else if (digit) {
      const row = player.rows.find((each) => each.dataset.key === digit);
      if (row) player.switch(row, event.shiftKey ? "mute" : "solo");
    } else {
      return;
    }
    event.preventDefault();
  });

  const nameOf = (track) => track.querySelector("h2").textContent;
  const made = [...tracks];
  const COMPARE = {
    name: (a, b) => nameOf(a).localeCompare(nameOf(b), undefined, { numeric: true }),
    time: (a, b) => b.dataset.time - a.dataset.time,
    cost: (a, b) => b.dataset.cost - a.dataset.cost,
    length: (a, b) => b.dataset.seconds - a.dataset.seconds,
  };
  const order = (name) => {
    tracks.splice(0, tracks.length, ...(name ? [...made].sort(COMPARE[name]) : made));
    document.getElementById("none").before(...tracks);
  };

  /** Open the player that the address names: #track-0123456789ab@83 is a track at 1:23. */
  const goToFragment = () => {
    const [, id, at] = /^#(track-[0-9a-f]+)(?:@(\d+))?$/.exec(location.hash) ?? [];
    const track = id && document.getElementById(id);
    document.getElementById("missing").hidden = !id || Boolean(track);
    if (!track) return;
    track.hidden = false;
    track.scrollIntoView({ block: "start" });
    const player = playerOf(track);
    (player?.button ?? track).focus({ preventScroll: true });
    if (!player || !at) return;
    player.open();
    player.seek(Number(at));
  };

  const listenToTools = () => {
    const search = document.querySelector("[type=search]");
    const reasons = [...document.querySelectorAll(".reasons button")];
    const none = document.getElementById("none");
    const filter = () => {
      const words = (search?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      const outcome = document.querySelector(".tools [type=radio]:checked")?.value ?? "";
      const reason = reasons.find(isPressed)?.dataset.reason;
      let count = 0;
      for (const track of tracks) {
        const text = track.dataset.find;
        track.hidden = !(words.every((word) => text.includes(word)) &&
          (!outcome || track.dataset.outcome === outcome) &&
          (!reason || track.dataset.reason === reason));
        count += !track.hidden;
      }
      none.hidden = count > 0;
      say(`${count} of ${tracks.length} tracks shown`);
    };
    document.querySelector(".tools")?.addEventListener("input", (event) => {
      if (event.target.matches("input")) filter();
    });
    document.querySelector(".tools select")?.addEventListener("change", (event) => {
      order(event.target.value);
    });
    for (const button of reasons) {
      button.addEventListener("click", () => {
        for (const other of reasons) press(other, other === button && !isPressed(button));
        filter();
      });
    }
  };

  const listenToMediaKeys = () => {
    if (!("mediaSession" in navigator)) return;
    const handlers = {
      play: () => active && !active.playing && active.toggle(),
      pause: () => active?.playing && active.toggle(),
      seekbackward: () => active?.seek(active.position - STEP),
      seekforward: () => active?.seek(active.position + STEP),
    };
    for (const [name, handler] of Object.entries(handlers)) {
      navigator.mediaSession.setActionHandler(name, handler);
    }
  };

  document.documentElement.classList.add("js");
  tracks.forEach((track) => watcher.observe(track));
  addEventListener("beforeprint", () => tracks.forEach(drawTrack));
  listenToTracks();
  listenToKeys();
  listenToTools();
  listenToMediaKeys();
  addEventListener("hashchange", goToFragment);
  goToFragment();
})();
