"use strict";
// Chinese translations of the English texts in the scripts. Operator names and the facts of a server are not translated.

const CHINESE = {
  // Header and footer
  "Live": "实时", "Paused": "已暂停", "Connecting": "正在连接", "Stale: the exporter sends no new data": "数据已过时：exporter没有发来新数据",
  "Connection lost, reconnecting": "连接已断开，正在重新连接", "The server has stopped": "服务器已停止", "data {age} old": "数据为 {age} 前", "Pause": "暂停", "Resume": "继续",
  "Snapshot of {when}": "{when} 的快照", "The same data for other programs, and a page to save:": "同样的数据（供其他程序读取），以及可保存的页面：",
  "Hover to see values · this page contains its data as JSON": "悬停查看数值 · 本页的数据以 JSON 形式包含在页内",
  // Live page
  "no GPU: times are from the clock of the host": "没有 GPU：时间取自主机时钟", "level {level}": "级别 {level}",
  "No steps yet. Send a request to the server; this page updates itself.": "还没有步。向服务器发送请求后，本页会自动更新。", "No steps in the last hour. The last one began {ago}.": "最近一小时没有步。最后一步开始于 {ago}。", "Waiting for the exporter.": "正在等待exporter。",
  "Rank {rank} has been in step {step} for {time}. Run lightllm-otel doctor --stuck for details.": "rank {rank} 停在第 {step} 步已有 {time}。详情请运行 lightllm-otel doctor --stuck。",
  "last {time}": "最近 {time}", "last hour": "最近一小时", "since the start, {time}": "启动以来 {time}", "the GPUs": "GPU", "as of {when}": "截至 {when}", "{time} ago": "{time} 前", "CUDA graph": "CUDA graph", "eager": "eager", "prefill": "prefill", "decode": "decode", "mixed": "混合",
  "Prefill and decode": "prefill 与 decode", "GPU activity": "GPU 活动", "share of time": "占时间的比例", "idle, host busy": "空闲：主机繁忙", "idle, no requests": "空闲：没有请求",
  "{count} steps sampled": "采样 {count} 步", "over the last hour": "（一小时内）", "Last hour, by minute": "最近一小时，逐分钟", "now": "现在",
  "No sampled step in the last hour: step-level times only.": "最近一小时没有采样的步：只有整步的时间。",
  "Decode step": "decode 步", "No decode step in the last hour.": "最近一小时没有decode 步。", "per step, all steps": "每步（所有步）", "tokens/s, including idle time": "token/s（含空闲时间）", "requests × context": "请求数 × 上下文",
  "steps of all ranks": "步（所有 rank）", "of these, sampled": "其中已采样", "Average sampled step": "采样步的平均",
  "Step-level times only: the CUDA graphs have no instrumented graphs{reason}.": "只有整步的时间：CUDA graph没有带测量点的副本（instrumented graph）{reason}。",
  "operator": "算子", "share": "占比", "step": "每步", "call": "每次调用", "calls": "调用次数", "vs. baseline": "相对基线",
  "all_reduce by rank": "各 rank 的 all_reduce", "TP 1: one GPU has the whole model, so there is no all_reduce.": "TP 1：整个模型在一块 GPU 上，没有 all_reduce。",
  "The group spans several hosts. This exporter sees only its own ranks, so it cannot separate transfer from wait.": "该组跨多台主机；本exporter只看得到自己的 rank，无法区分传输与等待。",
  "No step has been compared across ranks yet.": "还没有步在各 rank 之间比较过。",
  "Transfer: the shortest time of all ranks. Wait: how long a rank waits for the last one. Means per call.": "传输：所有 rank 中最短的时间。等待：一个 rank 等待最后到达者的时间。均为每次调用的平均值。",
  "transfer": "传输", "wait": "等待", "rank": "rank", "after": "位置", "last": "最后", "attention": "attention", "ffn": "ffn", "embedding": "embedding", "lm_head": "lm_head",
  "only waits above {noise} count": "只计超过 {noise} 的等待", "last: how often this rank arrived last and all others waited, as a share of the calls whose last rank is known.": "最后：该 rank 最后到达、使其他 rank 等待的比例（只计已知最后到达者的调用）。",
  "–: unknown, because GPUs waited for their hosts in every call.": "–：未知，因为每次调用中都有 GPU 在等待自己的主机。",
  "Slowest steps": "最慢的步", "in the last {time}": "最近 {time} 内", "sampled steps": "采样的步", "None of these steps was sampled.": "这些步均未采样。", "No steps in this period.": "这段时间内没有步。",
  "The slowest of all steps took {time} (step {step}, {ago}).": "所有步中最慢的一步用时 {time}（第 {step} 步，{ago}）。", "{times} × the mean": "平均值的 {times} 倍", "step {step}": "第 {step} 步", "batch {batch}": "批 {batch}",
  "{tokens} new tokens": "{tokens} 个新 token", "largest excess over its mean: {operator}, {time}": "超出其平均最多：{operator}，多 {time}",
  "Coverage, freshness, overhead": "覆盖率、新鲜度与自身开销", "Coverage": "覆盖率", "Freshness": "新鲜度", "Overhead": "自身开销", "steps, all ranks": "步（所有 rank）", "of these, with operator times": "其中带算子时间",
  "share of their time in named operators": "其时间落在具名算子中的比例", "operators found": "找到的算子", "missing": "缺少", "instrumented CUDA graphs": "带测量点的 CUDA graph", "step-level times only, since the start": "只有整步时间（启动以来）",
  "not compared across ranks, since the start": "未在 rank 之间比较（启动以来）", "last step": "最近一步", "oldest step not yet counted": "最早的未计入的步", "none": "无", "ranks": "各 rank", "in flight for {time}": "已执行 {time}",
  "CPU time of the model processes": "模型进程的 CPU 时间", "GPU time added to the steps by sampling (hour)": "采样给步增加的 GPU 时间（一小时）", "sampled step relative to its neighbours": "采样步相对相邻步", "CPU time of the exporter": "exporter的 CPU 时间",
  "of one core": "（一个核）", "memory of the exporter": "exporter的内存", "open live pages": "打开的实时页面", "dropped, since the start": "丢弃（启动以来）", "errors, since the start": "错误（启动以来）",
  // Report
  "one recording": "一份录制", "{count} repeats": "{count} 次重复", "of the time in steps": "的时间在步中", "output tokens/s, whole run": "输出 token/s（整次运行）", "Against the hardware": "与硬件对比", "Over time": "随时间",
  "per step, {low} to {high}": "每步，{low} 至 {high}", "99th percentile": "第 99 百分位", "tokens/s during steps": "token/s（步执行期间）", "of peak FLOP/s (MFU)": "峰值 FLOP/s 的比例（MFU）", "of peak bandwidth (MBU)": "峰值带宽的比例（MBU）",
  "{sampled} of {steps} steps sampled, 95 % intervals": "{steps} 步中采样 {sampled} 步，95 % 区间", "Share of each operator": "各算子的占比", "Operators": "算子", "per rank": "每个 rank", "One step": "一步", "Timeline of one step": "一步的时间线",
  "layer": "层", "number {number}, batch {batch}": "第 {number} 步，批 {batch}", "the sampled step closest to the median": "最接近中位数的采样步", "computed": "计算", "moved": "搬运", "bus": "总线", "of peak": "峰值占比", "bound by": "受限于",
  "Layer × operator": "层 × 算子", "seconds per step; strongest colour: the longest of its row": "每步秒数；最深：该行最长", "Layers and operators": "层与算子", "Distribution of calls": "调用的分布", "{count} calls of {size} (median)": "{count} 次调用，每次 {size}（中位数）",
  "Roofline": "屋顶线", "{gpu}, peak rates of its data sheet; area: share of the phase": "{gpu}，峰值取自数据手册；面积：占其阶段的比例", "Steps": "步", "Steps over time": "随时间的步", "{steps} steps of one rank; each point is the longest of neighbouring steps": "一个 rank 的 {steps} 步；每点是相邻步中最长的",
};

let LANGUAGE = chosenLanguage();

function chosenLanguage() {
  try {
    const kept = localStorage.getItem("lightllm-otel-language");
    if (kept) return kept;
  } catch { /* a page from a file may have no storage */ }
  return (navigator.languages || [navigator.language || "en"])[0].toLowerCase().startsWith("zh") ? "zh" : "en";
}

function speak(language) {
  LANGUAGE = language;
  try { localStorage.setItem("lightllm-otel-language", language); } catch { /* then the choice lasts until the page is closed */ }
}

// Returns the text in the reader's language, with its {names} replaced by values.
function t(text, values) {
  const words = LANGUAGE === "zh" ? CHINESE[text] ?? text : text;
  return values ? words.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole) : words;
}
